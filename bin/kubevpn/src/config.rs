//! Defaults of flags, from the file `config.toml`: docs/config.md has the rules, docs/config.schema.json the keys.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::Failure;

/// Environment variable with the path of another file; empty for none.
pub(crate) const VARIABLE: &str = "KUBEVPN_CONFIG";
/// Size limit of the file.
const MOST_BYTES: u64 = 1 << 20;
/// Addresses that are not defaults of flags, because the listeners depend on the command.
const ADDRESSES: [&str; 2] = ["listen-socks", "listen-http"];
/// Environment variables that override a key.
const OVERRIDES: [(&str, &[&str]); 3] = [
    ("kubeconfig", &["KUBECONFIG"]),
    ("auth-file", &["KUBEVPN_AUTH_FILE", "KUBEVPN_AUTH"]),
    ("color", &["NO_COLOR"]),
];

/// The keys, each the name of a flag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct ConfigFile {
    kubeconfig: Option<String>,
    context: Option<String>,
    namespace: Option<String>,
    request_timeout: Option<String>,
    /// Default address of the SOCKS5 listener.
    pub(crate) listen_socks: Option<String>,
    /// Default address of the HTTP listener.
    pub(crate) listen_http: Option<String>,
    auth_file: Option<String>,
    max_connections: Option<u32>,
    max_connections_per_client: Option<u32>,
    listen_name: Option<Vec<String>>,
    keep_host: Option<bool>,
    pac_range: Option<Vec<String>>,
    pac_upstream: Option<String>,
    cluster_domain: Option<String>,
    cluster_suffix: Option<Vec<String>>,
    cluster_dns: Option<String>,
    outside: Option<String>,
    wait_ready: Option<String>,
    transport: Option<String>,
    log_format: Option<String>,
    color: Option<String>,
}

/// The file: `$KUBEVPN_CONFIG`, else the usual place; `None` without a home directory.
pub(crate) fn path() -> Option<PathBuf> {
    path_in(|name| std::env::var_os(name).map(PathBuf::from))
}

fn path_in(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(named) = variable(VARIABLE) {
        return Some(named).filter(|path| !path.as_os_str().is_empty());
    }
    let base = variable("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let home = || variable("HOME").filter(|path| !path.as_os_str().is_empty());
    let base = base.or_else(|| Some(home()?.join(".config")))?;
    Some(base.join("kubevpn").join("config.toml"))
}

/// Reads the file. A missing file is an error only if the environment names it.
pub(crate) fn read() -> Result<ConfigFile, Failure> {
    let Some(path) = path() else {
        return Ok(ConfigFile::default());
    };
    let is_named = std::env::var_os(VARIABLE).is_some();
    let cannot = || format!("cannot read {}", path.display());
    let mut text = String::new();
    match std::fs::File::open(&path) {
        Ok(file) => {
            let read = file.take(MOST_BYTES + 1).read_to_string(&mut text);
            read.with_context(cannot)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => {
            return Ok(ConfigFile::default());
        }
        Err(error) => return Err(anyhow::Error::from(error).context(cannot()).into()),
    }
    if text.len() as u64 > MOST_BYTES {
        return Err(Failure::value(format!(
            "{} is larger than {MOST_BYTES} bytes",
            path.display()
        )));
    }
    parse(&text, &path)
}

fn parse(text: &str, path: &Path) -> Result<ConfigFile, Failure> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map(|before| format!(", line {}", before.matches('\n').count() + 1));
        Failure::value(format!(
            "{}{}: {}",
            path.display(),
            line.unwrap_or_default(),
            error.message()
        ))
    })
}

static INSTALLED: OnceLock<ConfigFile> = OnceLock::new();

/// Installs the defaults of this process.
pub(crate) fn install(config: ConfigFile) {
    // `main` calls this once.
    let _ = INSTALLED.set(config);
}

/// The defaults of this process.
pub(crate) fn installed() -> &'static ConfigFile {
    static NONE: OnceLock<ConfigFile> = OnceLock::new();
    INSTALLED
        .get()
        .unwrap_or_else(|| NONE.get_or_init(ConfigFile::default))
}

/// The arguments without any flag.
pub(crate) fn usual<T: clap::Args + Default>() -> T {
    let command = T::augment_args(clap::Command::new("kubevpn").no_binary_name(true));
    let none: [&str; 0] = [];
    let matches = installed().apply(command).try_get_matches_from(none);
    let usual = matches.and_then(|matches| T::from_arg_matches(&matches));
    usual.unwrap_or_default()
}

impl ConfigFile {
    /// Key and values of each setting that the environment does not override.
    pub(crate) fn settings(&self) -> Vec<(String, Vec<String>)> {
        let is_overridden = |key: &str| {
            let by = OVERRIDES.iter().find(|(overridden, _)| *overridden == key);
            let is_set = |name: &&str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
            by.is_some_and(|(_, variables)| variables.iter().any(is_set))
        };
        // Strings, numbers and lists of strings always serialise.
        let document = serde_json::to_value(self).unwrap_or_default();
        let entries = document.as_object().cloned().unwrap_or_default();
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        entries
            .into_iter()
            .filter(|(key, value)| !value.is_null() && !is_overridden(key))
            .map(|(key, value)| {
                let values = match &value {
                    Value::Array(list) => list.iter().map(text).collect(),
                    one => vec![text(one)],
                };
                (key, values)
            })
            .collect()
    }

    /// Sets these defaults on the command and its subcommands, except `demo`, whose cluster is another.
    pub(crate) fn apply(&self, command: clap::Command) -> clap::Command {
        fn with(command: clap::Command, settings: &[(String, Vec<String>)]) -> clap::Command {
            if command.get_name() == "demo" {
                return command;
            }
            let command = command.mut_args(|arg| {
                let flag = arg.get_long().filter(|flag| !ADDRESSES.contains(flag));
                let set = settings.iter().find(|(key, _)| Some(key.as_str()) == flag);
                match set.map(|(_, values)| values.clone()) {
                    Some(values) => arg.default_values(values),
                    None => arg,
                }
            });
            command.mut_subcommands(|command| with(command, settings))
        }
        match self.settings() {
            none if none.is_empty() => command,
            settings => with(command, &settings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_the_file() {
        let place = |variables: &[(&str, &str)]| {
            path_in(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| PathBuf::from(value))
            })
        };
        let home = ("HOME", "/home/jane");
        for (variables, path) in [
            (&[home][..], Some("/home/jane/.config/kubevpn/config.toml")),
            (
                &[home, ("XDG_CONFIG_HOME", "/x")],
                Some("/x/kubevpn/config.toml"),
            ),
            (
                &[home, ("XDG_CONFIG_HOME", "relative")],
                Some("/home/jane/.config/kubevpn/config.toml"),
            ),
            (&[home, (VARIABLE, "/c")], Some("/c")),
            (&[home, (VARIABLE, "")], None),
            (&[], None),
        ] {
            assert_eq!(place(variables), path.map(PathBuf::from), "{variables:?}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, words) in [
            ("contxt = 'a'", "/c, line 1: unknown field `contxt`"),
            ("\nmax-connections = 'many'", "/c, line 2: invalid type"),
            ("context = ", "/c, line 1: "),
            ("[listen]\n", "/c, line 1: unknown field `listen`"),
            ("token = 'x'", "unknown field `token`"),
        ] {
            let failure = parse(text, Path::new("/c")).unwrap_err();
            assert_eq!(crate::exit::exit_code(&failure), 23, "{text}");
            let said = failure.message();
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn settings_of_each_kind() {
        let config = "context = 'a'\nmax-connections = 5\nkeep-host = true\npac-range = ['10.0.0.0/8', '10.1.0.0/16']";
        let config = parse(config, Path::new("/c")).unwrap();
        let of = |key: &str| {
            let settings = config.settings();
            let found = settings.iter().find(|(name, _)| name == key);
            found.map_or_else(String::new, |(_, values)| values.join(" "))
        };
        assert_eq!(
            [
                "context",
                "max-connections",
                "keep-host",
                "pac-range",
                "outside"
            ]
            .map(of),
            ["a", "5", "true", "10.0.0.0/8 10.1.0.0/16", ""]
        );
    }

    /// docs/config.schema.json has the same keys, with the values of the flags.
    #[test]
    fn the_schema_has_the_keys() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.schema.json");
        let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let described = schema["properties"].as_object().unwrap();
        let keys = serde_json::to_value(ConfigFile::default()).unwrap();
        let keys = keys.as_object().unwrap();
        assert_eq!(
            described.keys().collect::<Vec<_>>(),
            keys.keys().collect::<Vec<_>>()
        );
        assert_eq!(schema["additionalProperties"], false);
    }
}
