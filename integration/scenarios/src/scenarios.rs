//! The scenarios, a file per subject.

mod dns;
mod failover;
mod forward;
mod http;
mod life;
mod names;
mod refusals;
mod run;
mod streams;

use crate::Scenario;

/// `scenario!(f)` is a [`Scenario`] named after its file and function.
macro_rules! scenario {
    ($subject:literal, $f:ident) => {
        crate::Scenario {
            name: concat!($subject, "::", stringify!($f)),
            run: |context| Box::pin($f(context)),
        }
    };
}
use scenario;

pub(crate) fn all() -> Vec<Scenario> {
    [
        names::list(),
        refusals::list(),
        streams::list(),
        life::list(),
        failover::list(),
        forward::list(),
        dns::list(),
        run::list(),
        http::list(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
