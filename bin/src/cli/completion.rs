//! `kubevpn completion SHELL`.

use clap::CommandFactory as _;
use clap_complete::Shell;

/// Print the completion script for a shell
#[derive(Debug, clap::Args)]
pub(crate) struct Completion {
    /// The shell to complete in
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(self) {
        clap_complete::generate(
            self.shell,
            &mut super::Args::command(),
            "kubevpn",
            &mut std::io::stdout(),
        );
    }
}
