//! `kubevpn version`.

use crate::exit::Failure;
use crate::out;

/// Print the version
#[derive(Debug, clap::Args)]
pub(crate) struct Version {}

impl Version {
    pub(crate) fn run(self) -> Result<(), Failure> {
        out::line(format_args!("kubevpn {}", env!("CARGO_PKG_VERSION")))
    }
}
