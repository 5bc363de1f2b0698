//! Label and field selectors, as a request's query or a Service's spec states them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kind::ResourceKind;

/// Both selectors of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, String, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    /// Reads the two query parameters. The error is what the API server says in its 400.
    pub(crate) fn parse(kind: &ResourceKind, labels: &str, fields: &str) -> Result<Self, String> {
        Ok(Self {
            labels: parse_labels(labels)?,
            fields: parse_fields(kind, fields)?,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name it can match, by `metadata.name=`.
    pub(crate) fn name(&self) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _, equal)| field == "metadata.name" && *equal)
            .map(|(_, value, _)| value.as_str())
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|r| r.matches(labels))
            && self
                .fields
                .iter()
                .all(|(path, value, equal)| (field(object, path) == *value) == *equal)
    }
}

/// Whether an equality selector (a Service's `spec.selector`) matches; an empty one matches nothing.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let Some(selector) = selector.as_object() else {
        return false;
    };
    !selector.is_empty() && selector.iter().all(|(k, v)| labels[k] == *v)
}

fn field(object: &Value, path: &str) -> String {
    let value = path.split('.').fold(object, |v, part| &v[part]);
    match value {
        Value::String(text) => text.clone(),
        Value::Null if path == "spec.hostNetwork" => "false".into(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let has = |key: &str| labels[key].as_str();
        match self {
            Self::In(key, values) => has(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Self::NotIn(key, values) => has(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Self::Exists(key) => has(key).is_some(),
            Self::Absent(key) => has(key).is_none(),
        }
    }
}

fn parse_fields(kind: &ResourceKind, text: &str) -> Result<Vec<(String, String, bool)>, String> {
    let mut found = Vec::new();
    for term in text.split(',').filter(|t| !t.is_empty()) {
        let (field, value, equal) = if let Some((f, v)) = term.split_once("!=") {
            (f, v, false)
        } else if let Some((f, v)) = term.split_once("==").or_else(|| term.split_once('=')) {
            (f, v, true)
        } else {
            return Err(format!(
                "invalid selector: '{term}'; can't understand '{term}'"
            ));
        };
        let known = field == "metadata.name"
            || field == "metadata.namespace" && (kind.namespaced || !kind.group.is_empty())
            || kind.fields.contains(&field);
        if !known {
            return Err(if kind.group.is_empty() {
                format!("field label not supported: {field}")
            } else {
                format!(
                    "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                )
            });
        }
        found.push((field.to_owned(), value.to_owned(), equal));
    }
    Ok(found)
}

/// The grammar of a label selector: `key`, `!key`, `key=v`, `key==v`, `key!=v`, `key in (a,b)`,
/// `key notin (a,b)`, with commas between.
fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    let tokens = tokens(text);
    let mut tokens = tokens.iter().map(String::as_str).peekable();
    let mut found = Vec::new();
    while let Some(token) = tokens.next() {
        if token == "!" {
            let key = tokens.next().unwrap_or_default();
            found.push(Requirement::Absent(key_of(key, "identifier")?));
        } else {
            let key = key_of(token, "!, identifier, or 'end of string'")?;
            found.push(match tokens.next_if(|t| *t != ",") {
                None => Requirement::Exists(key),
                Some("=" | "==") => Requirement::In(key, vec![value_of(tokens.next_if(|t| *t != ","))]),
                Some("!=") => Requirement::NotIn(key, vec![value_of(tokens.next_if(|t| *t != ","))]),
                Some("in") => Requirement::In(key, set_of(&mut tokens)?),
                Some("notin") => Requirement::NotIn(key, set_of(&mut tokens)?),
                Some(other) => {
                    return Err(format!(
                        "unable to parse requirement: found '{other}', expected: in, notin, =, ==, !=, gt, lt"
                    ));
                }
            });
        }
        match tokens.next() {
            None => break,
            Some(",") if tokens.peek().is_some() => {}
            Some(",") => return Err("found '', expected: identifier after ','".into()),
            Some(other) => {
                return Err(format!(
                    "unable to parse requirement: found '{other}', expected: ',' or 'end of string'"
                ));
            }
        }
    }
    Ok(found)
}

fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if !" \t=!,()".contains(c) {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            tokens.push(std::mem::take(&mut word));
        }
        let operator = match c {
            ' ' | '\t' => continue,
            '=' if chars.next_if_eq(&'=').is_some() => "==".into(),
            '!' if chars.next_if_eq(&'=').is_some() => "!=".into(),
            other => other.to_string(),
        };
        tokens.push(operator);
    }
    if !word.is_empty() {
        tokens.push(word);
    }
    tokens
}

fn key_of(token: &str, wanted: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if token.is_empty() || !token.chars().all(plain) {
        return Err(format!(
            "unable to parse requirement: found '{token}', expected: {wanted}"
        ));
    }
    Ok(token.into())
}

fn value_of(token: Option<&str>) -> String {
    token.unwrap_or_default().into()
}

fn set_of<'a>(tokens: &mut impl Iterator<Item = &'a str>) -> Result<Vec<String>, String> {
    let wrong = |found: Option<&str>, wanted: &str| {
        let found = found.unwrap_or_default();
        Err(format!(
            "unable to parse requirement: found '{found}' expected: {wanted}"
        ))
    };
    match tokens.next() {
        Some("(") => {}
        other => return wrong(other, "'('"),
    }
    let mut values = Vec::new();
    loop {
        match tokens.next() {
            Some(")") => return Ok(values),
            Some(",") => {}
            Some(value) if value != "(" => values.push(value.to_owned()),
            other => return wrong(other, "',', ')' or identifier"),
        }
    }
}

/// A query string, decoded. Of a name that stands twice, all values are kept.
pub(crate) fn query(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        found
            .entry(unescape(name, true))
            .or_default()
            .push(unescape(value, true));
    }
    found
}

/// Undoes percent encoding; in a query `+` is a space.
pub(crate) fn unescape(text: &str, in_query: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [a, b, after @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                let digit = |d: u8| char::from(d).to_digit(16).unwrap_or_default() as u8;
                bytes.push(digit(*a) << 4 | digit(*b));
                rest = after;
            }
            (b'+', _) if in_query => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind;

    fn pod(labels: &Value) -> Value {
        json!({"metadata": {"name": "a", "namespace": "n", "labels": labels},
               "spec": {"nodeName": "node-1"}, "status": {"podIP": "10.244.0.5"}})
    }

    fn labels(selector: &str, labels: &Value) -> bool {
        let selector = Selector::parse(&kind::POD, selector, "").unwrap();
        selector.matches(&pod(labels))
    }

    #[test]
    fn label_selectors() {
        let web = json!({"app": "web", "tier": "front"});
        for (selector, matches) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=web,tier=back", false),
            ("app!=web", false),
            ("app!=db", true),
            ("nosuch!=db", true),
            ("app", true),
            ("!app", false),
            ("!nosuch", true),
            ("app in (web, db)", true),
            ("app in (db)", false),
            ("app notin (db),tier", true),
            ("nosuch notin (db)", true),
            ("nosuch in (db)", false),
            ("app=", false),
        ] {
            assert_eq!(labels(selector, &web), matches, "{selector:?}");
        }
    }

    #[test]
    fn field_selectors() {
        let matches = |fields: &str| {
            let selector = Selector::parse(&kind::POD, "", fields).unwrap();
            selector.matches(&pod(&Value::Null))
        };
        assert!(matches("metadata.name=a,metadata.namespace==n"));
        assert!(matches("status.podIP=10.244.0.5"));
        assert!(!matches("status.podIP=10.244.0.6"));
        assert!(matches("spec.nodeName!=node-2"));
        assert!(matches("spec.hostNetwork=false"));
        assert!(matches("status.phase="));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let parse = |l: &str, f: &str| Selector::parse(&kind::POD, l, f).unwrap_err();
        assert_eq!(
            parse("a b c", ""),
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"
        );
        assert_eq!(
            parse("", "status.foo=x"),
            "field label not supported: status.foo"
        );
        for bad in ["a in", "a in (b", "a,", "=b", "a=b c", "(", "!"] {
            assert!(Selector::parse(&kind::POD, bad, "").is_err(), "{bad:?}");
        }
        let slices = Selector::parse(&kind::ENDPOINT_SLICE, "", "status.foo=x");
        assert_eq!(
            slices.unwrap_err(),
            "\"status.foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }

    #[test]
    fn queries() {
        let q = query("watch=1&labelSelector=a%3Db%2Cc&x=a+b&ports=1&ports=2&flag");
        assert_eq!(q["labelSelector"], ["a=b,c"]);
        assert_eq!(q["x"], ["a b"]);
        assert_eq!(q["ports"], ["1", "2"]);
        assert_eq!(q["flag"], [""]);
        assert_eq!(unescape("%zz%4", false), "%zz%4");
    }
}
