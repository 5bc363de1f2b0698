//! The help of every command, as it is printed 100 columns wide: `golden/help`, written anew with `KUBEVPN_BLESS` in the
//! environment.

use std::path::Path;

use kubevpn_scenarios::run_to_end;

use crate::kubevpn;

const COMMANDS: [&str; 28] = [
    "bugreport",
    "check",
    "completion",
    "config",
    "connect",
    "connection",
    "daemon",
    "demo",
    "disconnect",
    "env",
    "logs",
    "man",
    "nc",
    "open",
    "pac",
    "port-forward",
    "proxy-out",
    "quit",
    "resolve",
    "run",
    "services",
    "shell",
    "snippet",
    "status",
    "tap",
    "top",
    "version",
    "",
];

/// The commands of commands.
const NESTED: [&str; 5] = [
    "config path",
    "config view",
    "connection list",
    "connection use",
    "daemon log-level",
];

async fn help(command: &str) -> String {
    let words = command.split_whitespace().chain(["--help"]);
    let output = run_to_end(kubevpn(), words, &[("COLUMNS", "100")]);
    let output = output.await.unwrap();
    assert!(output.status.success(), "{command}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn help_is_what_was_agreed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/tests/golden/help");
    let bless = std::env::var_os("KUBEVPN_BLESS").is_some();
    let mut differ = Vec::new();
    for command in COMMANDS.into_iter().chain(NESTED) {
        let name = if command.is_empty() {
            "kubevpn".to_owned()
        } else {
            command.replace(' ', "-")
        };
        let path = dir.join(format!("{name}.txt"));
        let now = help(command).await;
        if bless {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&path, &now).unwrap();
        }
        let agreed = std::fs::read_to_string(&path).unwrap_or_default();
        if now != agreed {
            differ.push(format!("{}:\n{now}", path.display()));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// Each has an example, and each is in the list above.
#[tokio::test]
async fn every_command_has_an_example() {
    let all = help("").await;
    let (listed, _) = all.split_once("\nOptions:\n").unwrap();
    let mut count = 0;
    for line in listed.lines() {
        let Some(line) = line.strip_prefix("  ") else {
            continue;
        };
        let name = line.split_whitespace().next().unwrap();
        if name == "help" {
            continue;
        }
        count += 1;
        assert!(COMMANDS.contains(&name), "{name} is not in the list");
        assert!(help(name).await.contains("Examples:\n"), "{name}");
    }
    assert_eq!(count, COMMANDS.len() - 1);
}

/// The reference has these, too.
#[tokio::test]
async fn every_command_of_a_command_is_in_the_list() {
    let mut found = Vec::new();
    for command in COMMANDS.into_iter().filter(|name| !name.is_empty()) {
        let help = help(command).await;
        let Some((_, listed)) = help.split_once("\nCommands:\n") else {
            continue;
        };
        let names = listed
            .lines()
            .take_while(|line| !line.is_empty())
            // A text that goes on below is set in further.
            .filter(|line| !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| *name != "help");
        found.extend(names.map(|name| format!("{command} {name}")));
    }
    found.sort();
    assert_eq!(found, NESTED);
}
