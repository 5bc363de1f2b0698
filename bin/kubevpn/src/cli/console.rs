//! Selects the proxy for `top` and others: a connection of the daemon, or a proxy in the foreground.

use kubevpn_daemon::{ApiError, Code, Console, DaemonClient, StateDir, identity};
use kubevpn_proxy::journal::{AboutProxy, JournalSnapshot};

use crate::exit::Failure;

/// The proxy to look at.
#[derive(Debug, clap::Args)]
pub(super) struct ConsoleArgs {
    /// The proxy: the ID of a background connection or the beginning of it, its context or its namespace, or the process
    /// number of a proxy in the foreground [default: the only one]
    #[arg(value_name = "PROXY")]
    proxy: Option<String>,
}

impl ConsoleArgs {
    /// The selected proxy and its snapshot. A complete ID is passed to the daemon unchecked. No daemon is started.
    pub(super) async fn find(&self) -> Result<(Console, JournalSnapshot), Failure> {
        let daemon = DaemonClient::new(StateDir::locate()?);
        let given = self.proxy.as_deref();
        if let Some(id) = given.filter(|id| identity::is_id(id)) {
            let console = daemon.console(id);
            let seen = console.snapshot().await?;
            return Ok((console, seen));
        }
        let mut all = running(&daemon).await?;
        let about: Vec<_> = all.iter().map(|(_, seen)| &seen.about).collect();
        let index = meant(&about, given)?;
        Ok(all.swap_remove(index))
    }
}

/// All proxies of this user, with their snapshots.
pub(super) async fn running(
    daemon: &DaemonClient,
) -> Result<Vec<(Console, JournalSnapshot)>, ApiError> {
    let (mut all, mut failed) = (Vec::new(), None);
    for console in daemon.consoles().await? {
        match console.snapshot().await {
            Ok(seen) => all.push((console, seen)),
            Err(error) if is_over(&error) => {}
            // One proxy may have another version; the others can still be shown.
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if all.is_empty() => Err(error),
        _ => Ok(all),
    }
}

/// Whether the error is that the proxy has ended or is ending.
pub(super) fn is_over(error: &ApiError) -> bool {
    matches!(
        error.code,
        Code::NotRunning | Code::Ending | Code::NoSuchConnection
    )
}

/// Error of a command that looked at a proxy when it ended, however that did.
pub(super) fn ended(name: &str) -> ApiError {
    ApiError::new(Code::NotRunning, format!("the proxy {name} has ended"))
}

/// The name of a proxy: its ID or process number.
pub(super) fn name(about: &AboutProxy) -> String {
    match about.connection.is_empty() {
        true => about.pid.to_string(),
        false => about.connection.clone(),
    }
}

/// The cluster and namespace of a proxy, after its name.
pub(super) fn place(about: &AboutProxy) -> String {
    let words = [("context", &about.context), ("namespace", &about.namespace)];
    let words = words.iter().filter(|(_, name)| !name.is_empty());
    let words: Vec<_> = words.map(|(kind, name)| format!("{kind} {name}")).collect();
    match words.is_empty() {
        true => String::new(),
        false => format!(" ({})", words.join(", ")),
    }
}

fn meant(all: &[&AboutProxy], given: Option<&str>) -> Result<usize, ApiError> {
    let fits = |about: &AboutProxy, text: &str| {
        let by_name = match about.connection.is_empty() {
            true => about.pid.to_string() == text,
            false => about.connection.starts_with(text),
        };
        !text.is_empty() && (by_name || about.context == text || about.namespace == text)
    };
    let fits = |about: &AboutProxy| given.is_none_or(|text| fits(about, text));
    let found: Vec<_> = (0..all.len()).filter(|at| fits(all[*at])).collect();
    let named = |at: &usize| {
        let about = all[*at];
        let process = match about.connection.is_empty() {
            true => "process ",
            false => "",
        };
        format!("{process}{}{}", name(about), place(about))
    };
    match (&found[..], given) {
        ([at], _) => Ok(*at),
        ([], Some(text)) if !all.is_empty() => {
            let known: Vec<_> = (0..all.len()).map(|at| named(&at)).collect();
            Err(ApiError::new(
                Code::NoSuchConnection,
                format!("there is no proxy {text:?}: {}", known.join(", ")),
            ))
        }
        ([], _) => Err(ApiError::new(
            Code::NoSuchConnection,
            "no proxy runs: kubevpn proxy-out or kubevpn connect starts one",
        )),
        (several, given) => {
            let known: Vec<_> = several.iter().map(named).collect();
            let said = given.map_or_else(
                || "there are several proxies".to_owned(),
                |text| format!("{text:?} may be several proxies"),
            );
            let known = known.join(", ");
            Err(ApiError::new(
                Code::InvalidValue,
                format!("{said}: {known}; name one by its ID or process"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(connection: &str, pid: u32, namespace: &str) -> AboutProxy {
        AboutProxy {
            connection: connection.to_owned(),
            pid,
            context: "lab".to_owned(),
            namespace: namespace.to_owned(),
            ..AboutProxy::default()
        }
    }

    #[test]
    fn words_for_a_proxy() {
        let first = about("03dc50feb8c3", 7, "shop");
        let second = about("03ff50feb8c3", 7, "team-a");
        let foreground = about("", 4711, "shop");
        let (one, all) = (vec![&first], vec![&first, &second, &foreground]);
        for (list, given, wanted) in [
            (&one, None, Ok(0)),
            (&one, Some("03"), Ok(0)),
            (&all, Some("03f"), Ok(1)),
            (&all, Some("team-a"), Ok(1)),
            (&all, Some("4711"), Ok(2)),
            // The daemon's own, and the beginning of one.
            (&all, Some("7"), Err(Code::NoSuchConnection)),
            (&all, Some("47"), Err(Code::NoSuchConnection)),
            (&all, Some("03"), Err(Code::InvalidValue)),
            (&all, Some("shop"), Err(Code::InvalidValue)),
            (&all, None, Err(Code::InvalidValue)),
            (&all, Some(""), Err(Code::NoSuchConnection)),
            (&Vec::new(), None, Err(Code::NoSuchConnection)),
        ] {
            let found = meant(list, given).map_err(|error| error.code);
            assert_eq!(found, wanted, "{given:?}");
        }
        let said = meant(&all, None).unwrap_err().to_string();
        assert!(
            said.contains("03dc50feb8c3 (context lab, namespace shop)")
                && said.contains("process 4711 (context lab, namespace shop)"),
            "{said}"
        );
    }
}
