//! `kubevpn config`.

use clap::Subcommand;

use crate::config;
use crate::exit::Failure;
use crate::out;

/// Show the configuration file, which sets defaults of flags
///
/// Each key of config.toml is the name of a flag, and its value the default of that flag; docs/config.md lists them. Flags
/// override it, and so do the variables KUBECONFIG, KUBEVPN_AUTH_FILE, KUBEVPN_AUTH and NO_COLOR. KUBEVPN_CONFIG names
/// another file; if it is empty, no file is read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # a default context
  mkdir -p \"$(dirname \"$(kubevpn config path)\")\"
  echo 'context = \"staging\"' >> \"$(kubevpn config path)\"

  # what is in effect
  kubevpn config view")]
pub(crate) struct ConfigCommand {
    #[command(subcommand)]
    what: ConfigAction,
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Print the settings in effect
    View,
    /// Print the path of the file, even if it does not exist
    Path,
}

impl ConfigCommand {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let path = config::path().ok_or_else(|| {
            Failure::value(format!(
                "there is no configuration file: {} is empty, or HOME is not set",
                config::VARIABLE
            ))
        })?;
        match self.what {
            ConfigAction::Path => out::line(path.display()),
            ConfigAction::View => {
                let config = super::judged(config::read()?)?;
                let is_there = path.exists();
                let comment = if is_there { "" } else { " (not there)" };
                out::line(format_args!("# {}{comment}", path.display()))?;
                let text = toml::to_string(&config).map_err(anyhow::Error::from)?;
                let in_effect = config.settings();
                for line in text.lines() {
                    let key = line.split(' ').next().unwrap_or_default();
                    let has_effect = in_effect.iter().any(|(name, _)| name == key);
                    match has_effect {
                        true => out::line(line)?,
                        false => {
                            out::line(format_args!("# {line} # overridden by the environment"))?
                        }
                    }
                }
                Ok(())
            }
        }
    }
}
