//! `kubevpn version`.

/// Print the version
#[derive(Debug, clap::Args)]
pub(crate) struct Version {}

impl Version {
    #[expect(clippy::print_stdout, reason = "what the command is for")]
    pub(crate) fn run(self) {
        println!("kubevpn {}", env!("CARGO_PKG_VERSION"));
    }
}
