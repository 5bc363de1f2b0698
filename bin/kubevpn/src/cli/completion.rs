//! `kubevpn completion SHELL`.

use std::path::Path;

use clap::ValueEnum as _;
use clap_complete::Shell;
use clap_complete::env::Shells;

use super::complete;
use crate::exit::Failure;
use crate::out;

/// Print the completion script for a shell
///
/// The script completes commands, flags and their values: names in the kubeconfig, namespaces, Services and their ports
/// from the cluster, and IDs of connections. If the cluster does not answer within 700 ms, nothing is suggested;
/// KUBEVPN_COMPLETE_WITHIN=DURATION changes that time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # for this shell
  source <(kubevpn completion bash)

  # for every new shell
  echo 'source <(kubevpn completion zsh)' >> ~/.zshrc
  kubevpn completion fish > ~/.config/fish/completions/kubevpn.fish

  # in PowerShell
  kubevpn completion powershell | Out-String | Invoke-Expression

  # for kubectl kubevpn: a second name of this program
  ln -s \"$(command -v kubevpn)\" ~/.local/bin/kubectl-kubevpn
  ln -s \"$(command -v kubevpn)\" ~/.local/bin/kubectl_complete-kubevpn")]
pub(crate) struct Completion {
    /// Shell to print the script for
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let program = program();
        if self.shell == Shell::Bash {
            return out::print(complete::of_bash(&program));
        }
        let shells = Shells::builtins();
        let name = self.shell.to_possible_value();
        let name = name.as_ref().map_or("", |value| value.get_name());
        let Some(shell) = shells.completer(name) else {
            return Err(Failure::value(format!("{name} is not completed")));
        };
        let mut script = Vec::new();
        shell
            .write_registration(
                complete::VARIABLE,
                "kubevpn",
                "kubevpn",
                &program,
                &mut script,
            )
            .map_err(anyhow::Error::from)?;
        out::print(String::from_utf8_lossy(&script))
    }
}

/// The program as the script calls it: its name, or its absolute path if it was called by a path.
fn program() -> String {
    let called = std::env::args_os().next().unwrap_or_default();
    let called = Path::new(&called);
    match called.components().count() {
        0 => "kubevpn".to_owned(),
        1 => called.to_string_lossy().into_owned(),
        _ => {
            let absolute = std::path::absolute(called);
            let path = absolute.unwrap_or_else(|_| called.to_owned());
            path.to_string_lossy().into_owned()
        }
    }
}
