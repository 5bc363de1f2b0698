//! All rows. What has a choice in the RFCs is right either way.

use crate::row::OddRow;

mod answers;
mod requests;
mod tunnels;

/// Every row, in the order of the page.
pub fn rows() -> Vec<OddRow> {
    let mut all = requests::rows();
    all.extend(answers::rows());
    all.extend(tunnels::rows());
    all
}
