//! `kubevpn env`.

use std::ffi::OsStr;
use std::path::Path;

use clap::ValueEnum;
use kubevpn_client::OWN_PROXIES;

use super::at::{AtArgs, exceptions};
use super::kube::KubeArgs;
use crate::exit::Failure;
use crate::{out, terminal};

/// Variables that name a proxy.
const PROXIES: [&str; 6] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Print the shell commands that make programs use the proxy
///
/// Run them with eval "$(kubevpn env)". Without --use-http and --use-socks, the variables name the listeners of the current
/// connection (`kubevpn connect`), or of the connection to the cluster that --context and similar flags select; without a
/// connection, SOCKS5 on 127.0.0.1:1080. NO_PROXY keeps its value, and gets this machine, the API servers of all contexts
/// and the hosts at which their users log in, so that kubectl does not use the proxy.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # for the current connection
  kubevpn connect --http && eval \"$(kubevpn env)\"

  # for a proxy with both listeners
  eval \"$(kubevpn env --use-http 127.0.0.1:3128 --use-socks 127.0.0.1:1080)\"

  # and without it again
  eval \"$(kubevpn env --unset)\"

  # in fish
  kubevpn env --shell fish | source

  # in PowerShell
  kubevpn env --shell powershell | Out-String | Invoke-Expression")]
pub(crate) struct EnvCommand {
    /// Shell syntax to print [default: that of $SHELL, else bash]
    #[arg(long, value_name = "SHELL", value_enum)]
    shell: Option<ShellSyntax>,
    /// Print the commands that unset the variables; earlier values are not restored
    #[arg(long, conflicts_with_all = ["http", "socks"])]
    unset: bool,
    #[command(flatten)]
    at: AtArgs,
    #[command(flatten)]
    kube: KubeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ShellSyntax {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

impl ShellSyntax {
    /// The syntax for the name of a program; bash's for unknown ones.
    fn of(program: Option<&OsStr>) -> Self {
        let name = program.map(Path::new).and_then(Path::file_stem);
        match name.and_then(OsStr::to_str) {
            Some("zsh") => Self::Zsh,
            Some("fish") => Self::Fish,
            Some("pwsh" | "powershell") => Self::Powershell,
            _ => Self::Bash,
        }
    }

    /// The syntax of the user's shell.
    pub(super) fn of_user() -> Self {
        Self::of(std::env::var_os("SHELL").as_deref())
    }

    /// The line by which the shell evaluates the output of a command.
    pub(super) fn evaluates(self, command: &str) -> String {
        match self {
            Self::Bash | Self::Zsh => format!("eval \"$({command})\""),
            Self::Fish => format!("{command} --shell fish | source"),
            Self::Powershell => {
                format!("{command} --shell powershell | Out-String | Invoke-Expression")
            }
        }
    }

    /// A line that sets a variable, whose value is quoted for the shell.
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

    /// A line that removes a variable.
    fn unset(self, name: &str) -> String {
        match self {
            Self::Bash | Self::Zsh => format!("unset {name}"),
            Self::Fish => format!("set -e {name}"),
            Self::Powershell => format!("Remove-Item Env:{name} -ErrorAction Ignore"),
        }
    }
}

impl EnvCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let shell = self.shell.unwrap_or_else(ShellSyntax::of_user);
        let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if self.unset {
            return ours(value)
                .into_iter()
                .try_for_each(|name| out::line(shell.unset(name)));
        }
        let (proxy, hosts) = self.at.proxy(self.kube).await?;
        let no_proxy = exceptions(&hosts, &known_exceptions());
        for name in proxy.unset().iter().filter(|name| value(name).is_some()) {
            out::line(shell.unset(name))?;
        }
        for (name, value) in proxy.variables(&no_proxy, &own_proxies()) {
            out::line(shell.export(&name, &value))?;
        }
        let others = others(value);
        if terminal::is_there() && !out::is_hushed() && !others.is_empty() {
            out::aside(format_args!(
                "{} named another proxy, which this shell no longer uses: hosts outside the cluster are reached through ours \
                 with --outside direct, or in a new shell",
                others.join(", ")
            ));
        }
        Ok(())
    }
}

/// The variables that were set by `kubevpn env`, recognised by their values.
fn ours(value: impl Fn(&str) -> Option<String>) -> Vec<&'static str> {
    let own = value(OWN_PROXIES).unwrap_or_default();
    let is_ours = |text: String| own.split(',').any(|proxy| proxy == text);
    let mut found: Vec<_> = PROXIES
        .into_iter()
        .filter(|name| value(name).is_some_and(is_ours))
        .collect();
    if !own.is_empty() {
        found.extend(["NO_PROXY", "no_proxy", OWN_PROXIES]);
    }
    found
}

/// The variables that name another proxy.
fn others(value: impl Fn(&str) -> Option<String>) -> Vec<&'static str> {
    let ours = ours(&value);
    let named = PROXIES.into_iter().filter(|name| value(name).is_some());
    named.filter(|name| !ours.contains(name)).collect()
}

/// Value of NO_PROXY or no_proxy.
pub(super) fn known_exceptions() -> String {
    let known = ["NO_PROXY", "no_proxy"].map(|name| std::env::var(name).unwrap_or_default());
    let [upper, lower] = known;
    if upper.is_empty() { lower } else { upper }
}

/// Value of the variable that lists our proxies.
pub(super) fn own_proxies() -> String {
    std::env::var(OWN_PROXIES).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_is_chosen_by_the_name_of_the_shell() {
        let of = |shell: &str| ShellSyntax::of(Some(OsStr::new(shell)));
        assert_eq!(of("/usr/bin/zsh"), ShellSyntax::Zsh);
        assert_eq!(of("/opt/pwsh.exe"), ShellSyntax::Powershell);
        assert_eq!(
            (of("/bin/sh"), ShellSyntax::of(None)),
            (ShellSyntax::Bash, ShellSyntax::Bash)
        );
    }

    #[test]
    fn our_variables_are_distinguished_from_others() {
        let value = |name: &str| {
            let set = match name {
                "http_proxy" | "ALL_PROXY" => "http://127.0.0.1:3128",
                "HTTP_PROXY" => "http://proxy.corp:8080",
                "NO_PROXY" => "localhost",
                OWN_PROXIES => "http://127.0.0.1:3128,socks5h://127.0.0.1:1080",
                _ => return None,
            };
            Some(set.to_owned())
        };
        let wanted = [
            "http_proxy",
            "ALL_PROXY",
            "NO_PROXY",
            "no_proxy",
            OWN_PROXIES,
        ];
        assert_eq!(ours(value), wanted);
        assert_eq!(others(value), ["HTTP_PROXY"]);
        let before = |name: &str| (name != OWN_PROXIES).then(|| value(name)).flatten();
        assert_eq!(ours(before), [""; 0]);
        assert_eq!(others(before), ["HTTP_PROXY", "http_proxy", "ALL_PROXY"]);
        assert_eq!(ShellSyntax::Zsh.unset("X"), "unset X");
        assert_eq!(ShellSyntax::Fish.unset("X"), "set -e X");
    }

    #[test]
    fn values_are_quoted_for_the_shell() {
        let odd = r"a'b\c$(d)`e`";
        assert_eq!(
            ShellSyntax::Bash.export("X", odd),
            r"export X='a'\''b\c$(d)`e`'"
        );
        assert_eq!(
            ShellSyntax::Fish.export("X", odd),
            r"set -gx X 'a\'b\\c$(d)`e`'"
        );
        assert_eq!(
            ShellSyntax::Powershell.export("X", odd),
            r"$env:X = 'a''b\c$(d)`e`'"
        );
        let bash = format!("{}\nprintf %s \"$X\"", ShellSyntax::Bash.export("X", odd));
        let output = std::process::Command::new("bash")
            .args(["-c", &bash])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), odd);
    }
}
