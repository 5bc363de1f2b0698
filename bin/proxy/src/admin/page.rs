//! The status page, complete without scripts; in a browser with scripts, `script.js` updates it. All text except the page's
//! own is escaped by [`HtmlText`].

use std::fmt::{self, Display, Write as _};

use crate::journal::{ConnectionSnapshot, CredentialSnapshot, JournalSnapshot};

pub(super) const STYLE: &str = include_str!("style.css");
pub(super) const SCRIPT: &str = include_str!("script.js");
/// The answer to the URL with the token: goes on to the page. A browser whose user has followed the URL from another site would
/// take a redirect without the cookie that came with it.
pub(super) const OPENED: &str = concat!(
    "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"0; url=/\">",
    "<title>kubevpn</title><a href=\"/\">Status page</a></html>\n"
);

/// Text from outside, escaped for an HTML element or a quoted attribute.
struct HtmlText<'a>(&'a str);

impl Display for HtmlText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Message for a request that is not shown the page.
pub(super) fn message(title: &str, sentence: &str) -> String {
    let mut out = head(title, "");
    let _ = writeln!(
        out,
        "<body><header><h1>kubevpn</h1><p>{}</p></header></body></html>",
        HtmlText(sentence)
    );
    out
}

fn head(title: &str, more: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"stylesheet\" href=\"/style.css\">{more}</head>\n",
        HtmlText(title)
    )
}

/// The page with this snapshot.
pub(super) fn render(seen: &JournalSnapshot, csrf: &str) -> String {
    let about = &seen.about;
    let words = [&about.context, &about.namespace, &about.server];
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let title = match words.first() {
        Some(first) => format!("kubevpn: {first}"),
        None => "kubevpn".to_owned(),
    };
    let mut out = head(
        &title,
        "<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>\
         <script src=\"/script.js\" defer></script>",
    );
    // Writing to a string does not fail.
    let _ = page(&mut out, seen, csrf, &words);
    out
}

fn page(out: &mut String, seen: &JournalSnapshot, csrf: &str, words: &[&String]) -> fmt::Result {
    writeln!(out, "<body data-csrf=\"{}\">", HtmlText(csrf))?;
    write!(out, "<header><h1>kubevpn</h1>")?;
    for word in words {
        write!(out, "<p>{}</p>", HtmlText(word))?;
    }
    writeln!(
        out,
        "<span id=\"live\">as of {} UTC</span></header>\n<main>",
        clock(&seen.at)
    )?;
    totals(out, seen)?;
    connections(out, seen, csrf)?;
    writeln!(out, "<div class=\"columns\"><div>")?;
    refusals(out, seen)?;
    credentials(out, seen.credentials.as_ref())?;
    writeln!(out, "</div><div>")?;
    sessions(out, seen)?;
    listeners(out, seen)?;
    watches(out, seen)?;
    writeln!(out, "</div></div>\n</main></body></html>")
}

fn totals(out: &mut String, seen: &JournalSnapshot) -> fmt::Result {
    let totals = &seen.totals;
    let rate: f64 = seen
        .connections
        .iter()
        .map(|c| c.up_rate + c.down_rate)
        .sum();
    writeln!(out, "<dl class=\"totals\">")?;
    for (id, name, value) in [
        ("open", "Open connections", totals.open.to_string()),
        (
            "connected",
            "Connected so far",
            totals.connected.to_string(),
        ),
        ("refused", "Refused", totals.refused.to_string()),
        ("up", "To targets", amount(totals.up as f64)),
        ("down", "From targets", amount(totals.down as f64)),
        ("rate", "Now", format!("{}/s", amount(rate))),
    ] {
        writeln!(
            out,
            "<div><dt>{name}</dt><dd id=\"{id}\">{value}</dd></div>"
        )?;
    }
    writeln!(out, "</dl>")
}

fn connections(out: &mut String, seen: &JournalSnapshot, csrf: &str) -> fmt::Result {
    let count = seen.connections.len();
    writeln!(
        out,
        "<section id=\"connections\"><div class=\"head\"><h2>Connections</h2><small id=\"count\">{count}</small>\
         <input id=\"filter\" type=\"search\" placeholder=\"Filter\" aria-label=\"Filter connections\" hidden></div>\n\
         <div class=\"scroll\" tabindex=\"0\" aria-label=\"Connections\"><table><thead><tr><th>Asked for</th>\
         <th class=\"wide\">Pod</th><th class=\"wide\">Client</th><th class=\"n wide\">Sent</th><th class=\"n wide\">Received</th>\
         <th class=\"n\">Rate</th><th class=\"n age\">Age</th><th class=\"act\"></th></tr></thead><tbody>"
    )?;
    for connection in seen.connections.iter().rev() {
        row(out, connection, csrf)?;
    }
    let hidden = if count > 0 { " hidden" } else { "" };
    writeln!(
        out,
        "</tbody></table></div><p class=\"none\" id=\"none-connections\"{hidden}>None.</p></section>"
    )
}

fn row(out: &mut String, connection: &ConnectionSnapshot, csrf: &str) -> fmt::Result {
    let asked = match &connection.target {
        Some(target) => target.clone(),
        None => format!("({})", connection.frontend),
    };
    let pod = match &*connection.via {
        "" => "…",
        via => via,
    };
    let client = [&connection.program, &connection.client];
    let client: Vec<_> = client.into_iter().flatten().map(String::as_str).collect();
    let (client, asked) = (client.join(" "), &*asked);
    let small = [pod, connection.program.as_deref().unwrap_or_default()];
    let small: Vec<_> = small.into_iter().filter(|word| !word.is_empty()).collect();
    writeln!(
        out,
        "<tr title=\"{asked} by {client}\"><td><span>{asked}</span><small>{small}</small></td><td class=\"wide\">{pod}</td>\
         <td class=\"wide\">{client}</td><td class=\"n wide\">{up}</td><td class=\"n wide\">{down}</td>\
         <td class=\"n\"><span>{rate}/s</span><small>{age}</small></td><td class=\"n age\">{age}</td>\
         <td class=\"act\"><form method=\"post\" action=\"/cut\"><input type=\"hidden\" name=\"id\" value=\"{id}\">\
         <input type=\"hidden\" name=\"csrf\" value=\"{csrf}\"><button>Cut</button></form></td></tr>",
        asked = HtmlText(asked),
        small = HtmlText(&small.join(" · ")),
        pod = HtmlText(pod),
        client = HtmlText(&client),
        up = amount(connection.up as f64),
        down = amount(connection.down as f64),
        rate = amount(connection.up_rate + connection.down_rate),
        age = age(connection.age),
        id = connection.id,
        csrf = HtmlText(csrf),
    )
}

/// A section with a table, whose rows `fill` writes.
fn section(
    out: &mut String,
    (id, title): (&str, &str),
    columns: &[(&str, &str)],
    is_empty: bool,
    fill: impl FnOnce(&mut String) -> fmt::Result,
) -> fmt::Result {
    writeln!(
        out,
        "<section id=\"{id}\"><h2>{title}</h2><div class=\"scroll\"><table><thead><tr>"
    )?;
    for (class, name) in columns {
        write!(out, "<th class=\"{class}\">{name}</th>")?;
    }
    writeln!(out, "</tr></thead><tbody>")?;
    fill(out)?;
    let hidden = if is_empty { "" } else { " hidden" };
    writeln!(
        out,
        "</tbody></table></div><p class=\"none\" id=\"none-{id}\"{hidden}>None.</p></section>"
    )
}

fn sessions(out: &mut String, seen: &JournalSnapshot) -> fmt::Result {
    let columns = [
        ("", "Pod"),
        ("kind wide", "Transport"),
        ("n", "Streams"),
        ("kind", "Health"),
        ("n age", "Age"),
    ];
    section(
        out,
        ("sessions", "Sessions"),
        &columns,
        seen.sessions.is_empty(),
        |out| {
            seen.sessions.iter().try_for_each(|session| {
            writeln!(
                out,
                "<tr><td>{}</td><td class=\"kind wide\">{}</td><td class=\"n\">{}</td><td class=\"kind {health}\">{health}</td>\
                 <td class=\"n age\">{}</td></tr>",
                HtmlText(&session.pod),
                HtmlText(&session.transport),
                session.streams,
                age(session.age),
                health = HtmlText(&session.health),
            )
        })
        },
    )
}

fn refusals(out: &mut String, seen: &JournalSnapshot) -> fmt::Result {
    let columns = [("when", "When (UTC)"), ("", "What, and what to try")];
    section(
        out,
        ("refusals", "Last refusals"),
        &columns,
        seen.refusals.is_empty(),
        |out| {
            seen.refusals.iter().try_for_each(|refused| {
            let target = match &*refused.target {
                "" => &refused.frontend,
                target => target,
            };
            writeln!(
                out,
                "<tr><td class=\"when\">{}</td><td class=\"wrap\"><b>{}</b> <small>{}</small><span>{}</span></td></tr>",
                clock(&refused.at),
                HtmlText(target),
                HtmlText(&refused.refusal),
                HtmlText(&refused.sentence),
            )
        })
        },
    )
}

fn listeners(out: &mut String, seen: &JournalSnapshot) -> fmt::Result {
    let columns = [("kind", "Protocol"), ("", "Address")];
    section(
        out,
        ("listeners", "Listeners"),
        &columns,
        seen.listeners.is_empty(),
        |out| {
            seen.listeners.iter().try_for_each(|listener| {
                let address = match &listener.target {
                    Some(target) => format!("{} → {target}", listener.address),
                    None => listener.address.clone(),
                };
                writeln!(
                    out,
                    "<tr><td class=\"kind\">{}</td><td>{}</td></tr>",
                    HtmlText(&listener.protocol),
                    HtmlText(&address)
                )
            })
        },
    )
}

fn watches(out: &mut String, seen: &JournalSnapshot) -> fmt::Result {
    let columns = [("", "Objects"), ("kind", "Health")];
    section(
        out,
        ("watches", "Watches"),
        &columns,
        seen.watches.is_empty(),
        |out| {
            seen.watches.iter().try_for_each(|watch| {
                writeln!(
                    out,
                    "<tr><td>{}</td><td class=\"kind {health}\">{health}</td></tr>",
                    HtmlText(&watch.what),
                    health = HtmlText(&watch.health),
                )
            })
        },
    )
}

/// Same words as in `script.js`.
fn credentials(out: &mut String, credentials: Option<&CredentialSnapshot>) -> fmt::Result {
    let Some(credentials) = credentials else {
        return Ok(());
    };
    let mut words = match &*credentials.kinds {
        [] => "None yet".to_owned(),
        kinds => kinds.join(", "),
    };
    if let Some(plugin) = &credentials.plugin {
        let _ = write!(words, " by {plugin}");
    }
    match &credentials.expires {
        Some(expires) => {
            let _ = write!(words, ", until {expires}");
        }
        None => words.push_str(", no known expiry"),
    }
    if credentials.renewable {
        words.push_str("; renewed then");
    }
    writeln!(
        out,
        "<section id=\"credentials\"><h2>Credentials</h2><p class=\"none\">{}</p>",
        HtmlText(&words)
    )?;
    if let Some(trouble) = &credentials.trouble {
        writeln!(out, "<p class=\"none bad\">{}</p>", HtmlText(trouble))?;
    }
    writeln!(out, "</section>")
}

/// Same format as in `script.js`.
fn amount(mut bytes: f64) -> String {
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while bytes >= 1000.0
        && let Some(next) = units.next()
    {
        bytes /= 1000.0;
        unit = next;
    }
    match unit {
        "B" => format!("{} B", bytes.round()),
        unit => format!("{bytes:.1} {unit}"),
    }
}

/// Same format as in `script.js`.
fn age(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} m {} s", s / 60, s % 60),
        3600..86400 => format!("{} h {} m", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86400, s / 3600 % 24),
    }
}

/// Time of day in an RFC 3339 time.
fn clock(at: &str) -> &str {
    at.get(11..19).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{
        AboutProxy, ListenerSnapshot, RefusedConnection, SessionSnapshot, WatchSnapshot,
    };

    /// A name, a program and a refusal that contain markup.
    #[test]
    fn text_of_others_is_text() {
        let canary = "<script>alert(1)</script>\"'&";
        let about = AboutProxy {
            context: canary.into(),
            server: canary.into(),
            ..AboutProxy::default()
        };
        let mut seen = JournalSnapshot {
            about,
            ..JournalSnapshot::default()
        };
        let connection = ConnectionSnapshot {
            id: 1,
            frontend: canary.into(),
            client: Some(canary.into()),
            program: Some(canary.into()),
            target: Some(canary.into()),
            via: canary.into(),
            transport: canary.into(),
            up: 0,
            down: 0,
            up_rate: 0.0,
            down_rate: 0.0,
            age: 0.0,
            exchange: None,
        };
        seen.connections = vec![
            connection.clone(),
            ConnectionSnapshot {
                target: None,
                ..connection
            },
        ];
        seen.listeners = vec![ListenerSnapshot {
            protocol: canary.into(),
            address: canary.into(),
            target: Some(canary.into()),
        }];
        seen.sessions = vec![SessionSnapshot {
            id: 1,
            pod: canary.into(),
            transport: canary.into(),
            streams: 1,
            health: canary.into(),
            age: 0.0,
            silent: 0.0,
        }];
        seen.watches = vec![WatchSnapshot {
            what: canary.into(),
            health: canary.into(),
        }];
        let refused = RefusedConnection {
            id: 0,
            at: "2026-11-30T17:54:23Z".into(),
            frontend: canary.into(),
            client: Some(canary.into()),
            target: canary.into(),
            refusal: canary.into(),
            sentence: canary.into(),
        };
        seen.refusals = vec![refused];
        seen.credentials = Some(CredentialSnapshot {
            kinds: vec![canary.into()],
            plugin: Some(canary.into()),
            expires: Some(canary.into()),
            renewable: true,
            trouble: Some(canary.into()),
        });
        let page = render(&seen, canary);
        assert!(!page.contains("<script>"), "{page}");
        assert!(!page.contains("alert(1)</script>"), "{page}");
        let escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;";
        assert!(page.matches(escaped).count() > 20, "{page}");
        // Without the escaped texts, nothing of the payload is left in the page.
        assert!(!page.replace(escaped, "").contains("alert"), "{page}");
    }

    #[test]
    fn amounts_and_ages() {
        for (bytes, said) in [
            (0.0, "0 B"),
            (999.4, "999 B"),
            (1250.0, "1.2 kB"),
            (3e9, "3.0 GB"),
        ] {
            assert_eq!(amount(bytes), said);
        }
        for (seconds, said) in [
            (0.9, "0 s"),
            (61.0, "1 m 1 s"),
            (7325.0, "2 h 2 m"),
            (90000.0, "1 d 1 h"),
        ] {
            assert_eq!(age(seconds), said);
        }
        assert_eq!(clock("2026-11-30T17:54:23.123Z"), "17:54:23");
        assert_eq!(clock("x"), "");
    }
}
