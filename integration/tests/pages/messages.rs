//! The page of messages has every one that a command can start with.

use std::path::{Path, PathBuf};

use kubevpn_target::Refusal;

use crate::links::{anchors, root};

/// Types of errors whose messages are said before or instead of a connection.
const SOURCES: [&str; 15] = [
    "backend/client/src/kubeconfig/error.rs",
    "backend/client/src/error.rs",
    "backend/client/src/connector.rs",
    "backend/client/src/proxy.rs",
    "backend/cluster/src/error.rs",
    "backend/portforward/src/config.rs",
    "backend/portforward/src/error.rs",
    "bin/proxy/src/error.rs",
    "bin/proxy/src/guard.rs",
    "bin/proxy/src/policy.rs",
    "bin/proxy/src/tls.rs",
    "frontends/conn/src/addr.rs",
    "frontends/conn/src/auth.rs",
    "frontends/conn/src/listen.rs",
    "frontends/target/src/target.rs",
];

/// Folders whose messages stand where they are said, after one of [`SAID_BY`].
const SPOKEN: [&str; 2] = ["bin/daemon/src", "bin/kubevpn/src"];

const SAID_BY: [&str; 3] = ["Failure::value(", "ApiError::new(", "refused("];

/// Messages of bugs: `daemon_internal` has all of them.
const BUG: &str = "Code::Internal";

fn page() -> String {
    std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap()
}

/// A source without the items that are for tests alone, wherever they stand. Relies on rustfmt: an item of several lines ends
/// with a closing bracket that is indented as its attribute.
fn without_tests(source: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = source.lines();
    let mut kept = String::new();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept += line;
            kept.push('\n');
            continue;
        }
        let depth = indent(line);
        let mut item = lines
            .by_ref()
            .skip_while(|line| line.trim().starts_with("#[") || line.trim().starts_with("//"));
        let is_one_line = item
            .next()
            .is_none_or(|first| first.ends_with([';', ',', '}']));
        if !is_one_line {
            item.find(|line| indent(line) == depth && line.trim().starts_with(['}', ')', ']']));
        }
    }
    kept
}

/// The texts of `#[error("…")]` in a source.
fn messages(source: &str) -> Vec<String> {
    let source = without_tests(source);
    let attributes = source.split("#[error(").skip(1);
    attributes.filter_map(literal).collect()
}

/// The texts that a source says in place, but for its tests, and for those of bugs.
fn spoken(source: &str) -> Vec<String> {
    let source = without_tests(source);
    let calls = SAID_BY.iter().flat_map(|call| source.split(call).skip(1));
    let texts = calls.filter_map(|rest| {
        let before = &rest[..rest.find('"')?];
        let words = before.split(|c: char| !c.is_alphanumeric() && !":_!".contains(c));
        let is_in_place = words
            .filter(|word| !word.is_empty())
            .all(|word| word == "format!" || word.starts_with("Code::"));
        (is_in_place && !before.contains(BUG)).then(|| literal(&rest[before.len()..]))?
    });
    texts.collect()
}

/// The text in quotes with which a source begins, with its lines joined.
fn literal(source: &str) -> Option<String> {
    let text = source.trim_start().strip_prefix('"')?;
    let mut end = 0;
    while !text[end..].starts_with('"') {
        end += if text[end..].starts_with('\\') { 2 } else { 1 };
        while !text.is_char_boundary(end) {
            end += 1;
        }
    }
    let joined = text[..end].split("\\\n").map(str::trim_start);
    Some(joined.collect::<Vec<_>>().join(""))
}

/// All sources below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found
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
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let mut all = Vec::new();
    for source in SOURCES {
        let text = read(&root().join(source));
        let messages = messages(&text);
        assert!(!messages.is_empty(), "{source}");
        all.extend(messages.into_iter().map(|it| (source.to_owned(), it)));
    }
    for source in SPOKEN
        .iter()
        .flat_map(|folder| sources(&root().join(folder)))
    {
        // Of tests alone.
        let of_tests = ["fake.rs", "tests.rs", "tests"];
        if source
            .iter()
            .any(|part| of_tests.iter().any(|it| part == *it))
        {
            continue;
        }
        let name = source.display().to_string();
        all.extend(
            spoken(&read(&source))
                .into_iter()
                .map(|it| (name.clone(), it)),
        );
    }
    let mut missing = Vec::new();
    let mut count = 0;
    for (source, message) in all {
        let fixed = fixed(&message);
        if fixed.is_empty() {
            continue;
        }
        count += 1;
        if !page.contains(fixed) {
            missing.push(format!("{source}: {fixed}"));
        }
    }
    println!("{count} messages are on the page");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(count > 160, "{count}");
}

#[test]
fn a_message_is_read_where_it_is_said() {
    let source = r#"
        Failure::value("one"); Failure::value(format!("two {x}: {y}")); Failure::value(text);
        ApiError::new(Code::Conflict, format!(
            "three, \
             and more"));
        ApiError::new(Code::Internal, "four"); ApiError::new(code, sentence); let other = "five";
        #[cfg(test)]
        /// For tests.
        mod tests {
            fn of_a_test() {
                Failure::value("six")
            }
        }
        Failure::value("seven");
        #[cfg(test)]
        use refused("eight");
        Failure::value("nine");"#;
    let said = ["one", "two {x}: {y}", "seven", "nine", "three, and more"];
    assert_eq!(spoken(source), said);
}

#[test]
fn every_refusal_has_its_heading() {
    let anchors = anchors(&page());
    for refusal in Refusal::ALL {
        assert!(anchors.contains(refusal.as_str()), "{refusal}");
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
