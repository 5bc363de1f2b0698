//! Every row of the table of what a target can be, with objects made for it.

mod addresses;
mod elsewhere;
mod endpoints;
mod names;

use super::scenario;
use crate::Scenario;

pub(super) fn list() -> Vec<Scenario> {
    [
        names::list(),
        endpoints::list(),
        addresses::list(),
        elsewhere::list(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
