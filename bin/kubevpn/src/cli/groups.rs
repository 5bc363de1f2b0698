//! The groups of commands in `kubevpn --help`; clap itself has only one list.

/// Heading and commands of each group. Every command that is not hidden is in one.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "Reach the cluster",
        &["proxy-out", "port-forward", "run", "shell", "open", "nc"],
    ),
    (
        "In the background",
        &[
            "connect",
            "status",
            "disconnect",
            "connection",
            "logs",
            "quit",
            "daemon",
        ],
    ),
    (
        "Find out",
        &[
            "services",
            "top",
            "resolve",
            "tap",
            "check",
            "bugreport",
            "version",
        ],
    ),
    (
        "Set up other programs",
        &["env", "pac", "snippet", "completion", "man", "config"],
    ),
    ("Try it", &["demo", "help"]),
];

/// The command with grouped help.
pub(super) fn grouped(command: clap::Command) -> clap::Command {
    let mut list = String::new();
    for (heading, names) in GROUPS {
        list.push_str(&format!("{heading}:\n"));
        for name in names {
            let about = match *name {
                "help" => Some("Print this, or the help of a command".to_owned()),
                name => command
                    .find_subcommand(name)
                    .and_then(|of| of.get_about())
                    .map(ToString::to_string),
            };
            // A command may be missing in this build.
            if let Some(about) = about {
                list.push_str(&format!("  {name:<12}  {about}\n"));
            }
        }
        list.push('\n');
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}{{after-help}}\n"
    );
    command.help_template(template)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn each_command_is_in_one_group_and_one_line() {
        let command = super::super::Args::command();
        let visible = command.get_subcommands().filter(|it| !it.is_hide_set());
        let mut names: Vec<_> = visible.map(|it| it.get_name().to_owned()).collect();
        names.push("help".to_owned());
        names.sort();
        let grouped_names = GROUPS.iter().flat_map(|(_, names)| *names);
        let mut listed: Vec<_> = grouped_names.map(|name| (*name).to_owned()).collect();
        listed.sort();
        assert_eq!(listed, names);
        let help = grouped(command).render_help().to_string();
        let (list, _) = help.split_once("\nOptions:\n").unwrap();
        let wide = list.lines().find(|line| line.chars().count() > 80);
        assert_eq!(wide, None);
    }
}
