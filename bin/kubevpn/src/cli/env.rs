//! `kubevpn env`.

use std::ffi::OsStr;
use std::path::Path;

use clap::ValueEnum;
use kubevpn_client::OWN_PROXIES;

use super::at::{At, exceptions};
use super::kube::KubeArgs;
use crate::exit::Failure;
use crate::out;

/// Print the lines that make a shell's programs use the proxy
///
/// Nothing but those lines is printed: eval "$(kubevpn env)". Without --http and --socks they name the listeners of the
/// current connection (`kubevpn connect`), or of the connection to the cluster that --context and the like choose; where there
/// is none, SOCKS5 on 127.0.0.1:1080. NO_PROXY has this machine, the API servers of all contexts and where their users log in,
/// so that kubectl does not go through the proxy, and what it had before.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # for the current connection
  kubevpn connect --http && eval \"$(kubevpn env)\"

  # for a proxy with both listeners
  eval \"$(kubevpn env --http 127.0.0.1:3128 --socks 127.0.0.1:1080)\"

  # in fish
  kubevpn env --shell fish | source

  # in PowerShell
  kubevpn env --shell powershell | Out-String | Invoke-Expression")]
pub(crate) struct EnvCommand {
    /// Shell syntax to print [default: that of $SHELL, else bash]
    #[arg(long, value_name = "SHELL", value_enum)]
    shell: Option<Shell>,
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    kube: KubeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

impl Shell {
    /// By the name of a program; bash's words are those of most.
    fn of(program: Option<&OsStr>) -> Self {
        let name = program.map(Path::new).and_then(Path::file_stem);
        match name.and_then(OsStr::to_str) {
            Some("zsh") => Self::Zsh,
            Some("fish") => Self::Fish,
            Some("pwsh" | "powershell") => Self::Powershell,
            _ => Self::Bash,
        }
    }

    /// The person's own.
    pub(super) fn of_user() -> Self {
        Self::of(std::env::var_os("SHELL").as_deref())
    }

    /// The line that has the shell do what a command of ours prints.
    pub(super) fn evaluates(self, command: &str) -> String {
        match self {
            Self::Bash | Self::Zsh => format!("eval \"$({command})\""),
            Self::Fish => format!("{command} --shell fish | source"),
            Self::Powershell => {
                format!("{command} --shell powershell | Out-String | Invoke-Expression")
            }
        }
    }

    /// A line that sets a variable. Nothing in the value means anything to the shell.
    fn export(self, name: &str, value: &str) -> String {
        match self {
            Self::Bash | Self::Zsh => format!("export {name}='{}'", value.replace('\'', r"'\''")),
            Self::Fish => {
                let value = value.replace('\\', r"\\").replace('\'', r"\'");
                format!("set -gx {name} '{value}'")
            }
            Self::Powershell => format!("$env:{name} = '{}'", value.replace('\'', "''")),
        }
    }
}

impl EnvCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let (proxy, hosts) = self.at.proxy(self.kube).await?;
        let no_proxy = exceptions(&hosts, &known_exceptions());
        let shell = self.shell.unwrap_or_else(Shell::of_user);
        for (name, value) in proxy.variables(&no_proxy, &own_proxies()) {
            out::line(format_args!("{}", shell.export(&name, &value)))?;
        }
        Ok(())
    }
}

/// What this process was told to leave out, in either case.
pub(super) fn known_exceptions() -> String {
    let known = ["NO_PROXY", "no_proxy"].map(|name| std::env::var(name).unwrap_or_default());
    let [upper, lower] = known;
    if upper.is_empty() { lower } else { upper }
}

/// The proxies of ours that this process was told of.
pub(super) fn own_proxies() -> String {
    std::env::var(OWN_PROXIES).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_words() {
        let of = |shell: &str| Shell::of(Some(OsStr::new(shell)));
        assert_eq!(of("/usr/bin/zsh"), Shell::Zsh);
        assert_eq!(of("/opt/pwsh.exe"), Shell::Powershell);
        assert_eq!((of("/bin/sh"), Shell::of(None)), (Shell::Bash, Shell::Bash));
    }

    #[test]
    fn nothing_in_a_value_is_the_shells() {
        let odd = r"a'b\c$(d)`e`";
        assert_eq!(Shell::Bash.export("X", odd), r"export X='a'\''b\c$(d)`e`'");
        assert_eq!(Shell::Fish.export("X", odd), r"set -gx X 'a\'b\\c$(d)`e`'");
        assert_eq!(
            Shell::Powershell.export("X", odd),
            r"$env:X = 'a''b\c$(d)`e`'"
        );
        let bash = format!("{}\nprintf %s \"$X\"", Shell::Bash.export("X", odd));
        let output = std::process::Command::new("bash")
            .args(["-c", &bash])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), odd);
    }
}
