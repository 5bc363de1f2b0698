//! `kubevpn completion SHELL`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::exit::Failure;
use crate::out;

/// Print the completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # for this shell
  source <(kubevpn completion bash)")]
pub(crate) struct Completion {
    /// The shell to complete in
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut super::Args::command(),
            "kubevpn",
            &mut script,
        );
        out::print(String::from_utf8_lossy(&script))
    }
}
