//! The names under which kubectl runs this program as its plugin: `kubectl-kubevpn` for `kubectl kubevpn`, and
//! `kubectl_complete-kubevpn` for the candidates of its completion.

use std::path::Path;

/// The command as users type it.
const TYPED: &str = "kubectl kubevpn";

/// File name by which this program was called.
fn called() -> String {
    let program = std::env::args_os().next().unwrap_or_default();
    let stem = Path::new(&program).file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

pub(super) fn is_plugin() -> bool {
    called() == "kubectl-kubevpn"
}

/// Whether kubectl asks for candidates.
pub(super) fn is_asked_to_complete() -> bool {
    called() == "kubectl_complete-kubevpn"
}

/// The command, with usage and examples for kubectl.
pub(super) fn renamed(command: clap::Command) -> clap::Command {
    fn examples(command: clap::Command) -> clap::Command {
        let command = match command.get_after_help().map(ToString::to_string) {
            Some(text) => command.after_help(text.replace("kubevpn ", &format!("{TYPED} "))),
            None => command,
        };
        command.mut_subcommands(examples)
    }
    examples(command).bin_name(TYPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_and_examples_are_kubectls() {
        let run = clap::Command::new("run").after_help("Examples:\n  kubevpn run -- curl");
        let mut command = renamed(clap::Command::new("kubevpn").subcommand(run));
        command.build();
        let help = command.find_subcommand_mut("run").unwrap().render_help();
        let help = help.to_string();
        assert!(help.contains("Usage: kubectl kubevpn run"), "{help}");
        assert!(help.contains("  kubectl kubevpn run -- curl"), "{help}");
    }
}
