//! The page of messages has every one that a command can start with.

use kubevpn_target::Refusal;

use crate::links::{anchors, root};

/// Where the messages are that are said before or instead of a connection.
const SOURCES: [&str; 7] = [
    "backend/client/src/kubeconfig/error.rs",
    "backend/client/src/error.rs",
    "backend/client/src/connector.rs",
    "backend/client/src/proxy.rs",
    "bin/proxy/src/error.rs",
    "bin/proxy/src/guard.rs",
    "bin/proxy/src/tls.rs",
];

fn page() -> String {
    std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap()
}

/// The texts of `#[error("…")]` in a source.
fn messages(source: &str) -> Vec<String> {
    let attributes = source.split("#[error(").skip(1);
    let texts = attributes.filter_map(|rest| {
        let text = rest.trim_start().strip_prefix('"')?;
        let mut end = 0;
        while !text[end..].starts_with('"') {
            end += if text[end..].starts_with('\\') { 2 } else { 1 };
            while !text.is_char_boundary(end) {
                end += 1;
            }
        }
        let joined = text[..end].split("\\\n").map(str::trim_start);
        Some(joined.collect::<Vec<_>>().join(""))
    });
    texts.collect()
}

/// The longest part of a message that is always the same, as far as its advice.
fn fixed(message: &str) -> &str {
    let mut rest = message;
    let mut longest = "";
    while !rest.is_empty() {
        let end = rest.find(['{', ':', ';']).unwrap_or(rest.len());
        let part = rest[..end].trim();
        if part.len() > longest.len() {
            longest = part;
        }
        match rest[end..].chars().next() {
            Some('{') => rest = rest[end..].split_once('}').map_or("", |(_, after)| after),
            // What follows is what to try, once something was said.
            Some(_) if longest.len() > 10 => break,
            Some(_) => rest = &rest[end + 1..],
            None => break,
        }
    }
    longest
}

#[test]
fn every_start_up_message_is_on_the_page() {
    let page = page();
    let mut missing = Vec::new();
    let mut count = 0;
    for source in SOURCES {
        let text = std::fs::read_to_string(root().join(source)).unwrap();
        for message in messages(&text) {
            let fixed = fixed(&message);
            if fixed.is_empty() {
                continue;
            }
            count += 1;
            if !page.contains(fixed) {
                missing.push(format!("{source}: {fixed}"));
            }
        }
    }
    println!("{count} messages are on the page");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(count > 40, "{count}");
}

#[test]
fn every_refusal_has_its_heading() {
    let anchors = anchors(&page());
    for refusal in Refusal::ALL {
        assert!(anchors.contains(refusal.as_str()), "{refusal}");
    }
    for table in kubevpn_target::table::REFUSALS {
        assert!(page().contains(table.sentence), "{}", table.sentence);
    }
}

/// The codes of the daemon's API are those of every command.
#[test]
fn every_code_of_an_error_has_its_heading() {
    let anchors = anchors(&page());
    for code in kubevpn_daemon::Code::PLAIN {
        assert!(anchors.contains(code.as_str()), "{}", code.as_str());
    }
}
