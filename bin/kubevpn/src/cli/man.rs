//! `kubevpn man`.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::exit::Failure;
use crate::out;

/// Print the manual page, or write the pages of all commands
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # read it
  kubevpn man | man -l -

  # for a package
  kubevpn man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// Write a page of each command to DIR, which must exist
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Removes the `help` commands, each of which would get a page.
fn without_help(command: clap::Command) -> clap::Command {
    let command = command.disable_help_subcommand(true);
    command.mut_subcommands(without_help)
}

impl Man {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut command = without_help(super::command(&Default::default()));
        command.build();
        let Some(dir) = self.dir else {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(command).render(&mut page);
            rendered.map_err(anyhow::Error::from)?;
            return out::print(String::from_utf8_lossy(&page));
        };
        let written = clap_mangen::generate_to(command, &dir);
        Ok(written.with_context(|| format!("cannot write to {}", dir.display()))?)
    }
}
