//! A kubeconfig as written: values with their position, of which only the selected ones have to be valid.
//!
//! Errors name lines, columns and keys and never a value: any value can be a misplaced or partial secret.

use std::fmt;
use std::path::{Path, PathBuf};

use kube::config::{AuthInfo, Cluster, Context};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, json};
use serde_saphyr::Spanned;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::error::KubeconfigError;

/// A value and its position. No `Debug`: it may be a secret.
pub(super) struct YamlNode {
    /// Line and column, from 1.
    pub(super) at: (u64, u64),
    pub(super) value: YamlValue,
}

pub(super) enum YamlValue {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<YamlNode>),
    Map(Vec<(String, YamlNode)>),
}

impl YamlNode {
    /// Parses the first document of the text; the error has the position. As with kubectl, further documents are ignored,
    /// and the last value of a repeated key is used.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, Option<(u64, u64)>> {
        let options = serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::LastWins,
            with_snippet: false,
        };
        let mut bytes = text.as_bytes();
        let mut documents = serde_saphyr::read_with_options(&mut bytes, options);
        let first: Option<Result<Self, serde_saphyr::Error>> = documents.next();
        first
            .transpose()
            .map_err(|e| e.location().map(|at| (at.line(), at.column())))
    }

    /// The value of this key of a map.
    pub(super) fn take(&mut self, key: &str) -> Option<Self> {
        let YamlValue::Map(entries) = &mut self.value else {
            return None;
        };
        let found = entries.iter().position(|(name, _)| name == key)?;
        Some(entries.swap_remove(found).1).filter(|node| !matches!(node.value, YamlValue::Null))
    }

    /// The value as JSON. A key without a value counts as absent, as in Go.
    fn json(&self) -> serde_json::Value {
        match &self.value {
            YamlValue::Null => serde_json::Value::Null,
            YamlValue::Bool(it) => (*it).into(),
            YamlValue::Number(it) => it.clone().into(),
            YamlValue::Text(it) => it.as_str().into(),
            YamlValue::List(list) => list.iter().map(Self::json).collect(),
            YamlValue::Map(entries) => {
                let valued = entries
                    .iter()
                    .filter(|(_, n)| !matches!(n.value, YamlValue::Null));
                let json = valued.map(|(key, node)| (key.clone(), node.json()));
                serde_json::Value::Object(json.collect::<Map<_, _>>())
            }
        }
    }
}

/// What kind of value it is.
impl fmt::Display for YamlValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "empty",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        })
    }
}

impl<'de> Deserialize<'de> for YamlNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned {
            value, referenced, ..
        } = Spanned::deserialize(deserializer)?;
        let at = (referenced.line(), referenced.column());
        Ok(Self { at, value })
    }
}

impl<'de> Deserialize<'de> for YamlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = YamlValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<YamlValue, E> {
        Ok(YamlValue::Null)
    }

    fn visit_none<E>(self) -> Result<YamlValue, E> {
        Ok(YamlValue::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<YamlValue, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, it: bool) -> Result<YamlValue, E> {
        Ok(YamlValue::Bool(it))
    }

    fn visit_i64<E>(self, it: i64) -> Result<YamlValue, E> {
        Ok(YamlValue::Number(it.into()))
    }

    fn visit_u64<E>(self, it: u64) -> Result<YamlValue, E> {
        Ok(YamlValue::Number(it.into()))
    }

    fn visit_f64<E>(self, it: f64) -> Result<YamlValue, E> {
        Ok(Number::from_f64(it).map_or(YamlValue::Null, YamlValue::Number))
    }

    fn visit_str<E>(self, it: &str) -> Result<YamlValue, E> {
        Ok(YamlValue::Text(it.to_owned()))
    }

    fn visit_string<E>(self, it: String) -> Result<YamlValue, E> {
        Ok(YamlValue::Text(it))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<YamlValue, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(YamlValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<YamlValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(YamlValue::Map(entries))
    }
}

/// A named cluster, context or user, not yet read.
pub(super) struct NamedEntry {
    pub(super) name: String,
    /// The file that contains it; its paths are relative to the file's directory.
    pub(super) file: PathBuf,
    /// `users[1].user`.
    key: String,
    node: Option<YamlNode>,
    /// The position of a second entry of the same name in the file.
    again: Option<(u64, u64)>,
}

/// A type into which a [`NamedEntry`] is read. It is empty without any key, so that each key can be tested alone.
pub(super) trait EntryKind: DeserializeOwned + Default {
    fn rest() -> Map<String, serde_json::Value> {
        Map::new()
    }
}

impl EntryKind for Cluster {}
impl EntryKind for AuthInfo {}
impl EntryKind for Context {
    fn rest() -> Map<String, serde_json::Value> {
        Map::from_iter([("cluster".to_owned(), json!(""))])
    }
}

impl NamedEntry {
    /// Reads the entry; one without contents is empty.
    pub(super) fn read<K: EntryKind>(&self) -> Result<K, KubeconfigError> {
        if let Some(at) = self.again {
            let problem = format!("the name of {} is taken twice", self.key);
            return Err(broken(&self.file, Some(at), problem));
        }
        let Some(node) = &self.node else {
            return Ok(K::default());
        };
        let json = node.json();
        let of = |json: serde_json::Value| -> Option<K> {
            let mut fields = K::rest();
            fields.extend(json.as_object()?.clone());
            serde_json::from_value(fields.into()).ok()
        };
        of(json).ok_or_else(|| {
            if let YamlValue::Map(entries) = &node.value {
                for (key, node) in entries {
                    if of(json!({ key: node.json() })).is_none() {
                        let problem = format!("{}.{key} cannot be {}", self.key, node.value);
                        return broken(&self.file, Some(node.at), problem);
                    }
                }
            }
            let problem = format!("{} cannot be {}", self.key, node.value);
            broken(&self.file, Some(node.at), problem)
        })
    }

    /// Why the entry could not be selected; `None` if it could.
    fn problem<K: EntryKind>(&self) -> Option<KubeconfigError> {
        self.read::<K>().err()
    }
}

/// The entries of one kind in all files; for a repeated name, that of the first file.
#[derive(Default)]
pub(super) struct Entries(pub(super) Vec<NamedEntry>);

impl Entries {
    pub(super) fn find(&self, name: &str) -> Option<&NamedEntry> {
        self.0.iter().find(|entry| entry.name == name)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().map(|entry| entry.name.clone()).collect()
    }

    /// One sentence for each entry that could not be selected.
    pub(super) fn problems<K: EntryKind>(&self) -> impl Iterator<Item = String> {
        let problems = self.0.iter().filter_map(NamedEntry::problem::<K>);
        problems.map(|problem| problem.to_string())
    }

    /// Adds the entries under `list` of a document, each with its contents under `inner`. An entry without a name becomes a
    /// note.
    pub(super) fn add(
        &mut self,
        (list, inner): (&str, &str),
        document: &mut YamlNode,
        file: &Path,
        notes: &mut Vec<String>,
    ) -> Result<(), KubeconfigError> {
        let Some(found) = document.take(list) else {
            return Ok(());
        };
        let YamlValue::List(items) = found.value else {
            let problem = format!("{list} cannot be {}", found.value);
            return Err(broken(file, Some(found.at), problem));
        };
        for (n, mut item) in items.into_iter().enumerate() {
            let at = item.at;
            let Some(YamlValue::Text(name)) = item.take("name").map(|node| node.value) else {
                let problem = format!("{list}[{n}] has no name");
                notes.push(broken(file, Some(at), problem).to_string());
                continue;
            };
            match self.0.iter_mut().find(|entry| entry.name == name) {
                Some(known) if known.file == file => known.again = Some(at),
                Some(_) => {}
                None => self.0.push(NamedEntry {
                    name,
                    file: file.to_owned(),
                    key: format!("{list}[{n}].{inner}"),
                    node: item.take(inner),
                    again: None,
                }),
            }
        }
        Ok(())
    }
}

pub(super) fn broken(file: &Path, at: Option<(u64, u64)>, problem: String) -> KubeconfigError {
    KubeconfigError::Broken {
        path: file.to_owned(),
        position: at,
        problem,
    }
}
