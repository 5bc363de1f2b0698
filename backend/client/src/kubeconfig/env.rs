//! The environment variables that are used, passed in by the caller.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use kube::config::{ExecConfig, ExecInteractiveMode};

use super::error::KubeconfigError;
use crate::error::{PluginError, PluginFailure};

/// The environment [`load`](crate::load) works in.
///
/// These variables are used: `KUBECONFIG`, `HOME` (`USERPROFILE` on Windows), `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY` (and
/// their lower-case forms), `PATH`, `KUBERNETES_SERVICE_HOST`, `KUBERNETES_SERVICE_PORT` and `POD_NAMESPACE`. The process's
/// own environment matters in two places regardless: a credential plugin inherits it, except `not_for_plugins`, and the
/// system's trust store (used for a cluster without a CA) reads `SSL_CERT_FILE` and `SSL_CERT_DIR`.
#[derive(Clone, Debug)]
pub struct Env {
    vars: HashMap<OsString, OsString>,
    /// Whether a person can answer a credential plugin's questions.
    pub terminal: bool,
    /// The directory of a Pod's service account.
    pub service_account: PathBuf,
    /// Variables that are hidden from credential plugins, because they point to our own listeners.
    pub not_for_plugins: Vec<String>,
}

/// The variable in which `kubevpn env` and `kubevpn run` list the proxies that they set in the others, separated by commas.
pub const OWN_PROXIES: &str = "KUBEVPN_PROXIES";

/// The variables that name a proxy of ours. Traffic to the API server, and logins, must not use a proxy that depends on
/// them.
pub fn own_proxies(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<String> {
    let vars: HashMap<_, _> = vars.into_iter().collect();
    let own = vars.get(OsStr::new(OWN_PROXIES));
    let own = own
        .map(|list| list.to_string_lossy().into_owned())
        .unwrap_or_default();
    let is_own = |name: &&str| {
        let value = vars.get(OsStr::new(name)).and_then(|value| value.to_str());
        value.is_some_and(|value| !value.is_empty() && own.split(',').any(|url| url == value))
    };
    let names = [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ];
    names
        .into_iter()
        .filter(is_own)
        .map(str::to_owned)
        .collect()
}

impl Env {
    /// The environment and terminal of this process, without the variables that point to our own listeners.
    pub fn of_process() -> Self {
        let own = own_proxies(std::env::vars_os());
        let others =
            std::env::vars_os().filter(|(name, _)| !own.iter().any(|own| name == own.as_str()));
        Self {
            terminal: std::io::stdin().is_terminal(),
            not_for_plugins: own.clone(),
            ..Self::of(others)
        }
    }

    /// These variables and no others, without a terminal.
    pub fn of<K: Into<OsString>, V: Into<OsString>>(
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self {
            vars: vars
                .into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
            terminal: false,
            service_account: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
            not_for_plugins: Vec::new(),
        }
    }

    /// The variable, unless it is empty.
    pub(super) fn var_os(&self, name: &str) -> Option<&OsString> {
        self.vars.get(OsStr::new(name)).filter(|v| !v.is_empty())
    }

    pub(super) fn var(&self, name: &str) -> Option<String> {
        self.var_os(name).map(|v| v.to_string_lossy().into_owned())
    }

    /// The first of the variables that is set and not empty, with its name.
    pub(super) fn first_of(&self, names: [&'static str; 2]) -> Option<(&'static str, String)> {
        names
            .into_iter()
            .find_map(|name| Some((name, self.var(name)?)))
    }

    pub(super) fn home(&self) -> Option<PathBuf> {
        let home = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
        self.var_os(home).map(PathBuf::from)
    }

    /// `~/x` in the home directory; everything else as it is.
    pub(super) fn expand(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), self.home()) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path.to_owned(),
        }
    }

    /// Looks for the plugin's program, and allows questions only with a terminal: without one its standard error is
    /// captured, and can be part of the error message.
    pub(super) fn settle_plugin(
        &self,
        exec: &mut ExecConfig,
        user: Option<&str>,
    ) -> Result<(), KubeconfigError> {
        if !self.terminal && exec.interactive_mode != Some(ExecInteractiveMode::Always) {
            exec.interactive_mode = Some(ExecInteractiveMode::Never);
        }
        exec.drop_env = Some(self.not_for_plugins.clone());
        let command = Path::new(exec.command.as_deref().unwrap_or_default());
        if self.has_program(command) {
            return Ok(());
        }
        Err(KubeconfigError::Plugin {
            user: user.unwrap_or_default().to_owned(),
            source: PluginError::new(exec, PluginFailure::Missing),
        })
    }

    fn has_program(&self, command: &Path) -> bool {
        if cfg!(windows) {
            // The ending of PATHEXT is determined when it is run.
            return true;
        }
        if command.components().count() > 1 || command.is_absolute() {
            return command.is_file();
        }
        let path = self.var_os("PATH").cloned().unwrap_or_default();
        !command.as_os_str().is_empty()
            && std::env::split_paths(&path).any(|dir| dir.join(command).is_file())
    }
}
