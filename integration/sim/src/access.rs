//! Who may do what: bearer tokens, and rules as RBAC has them.

use std::collections::HashMap;

/// A user, known by a bearer token, with what it may do.
///
/// ```
/// use kubevpn_sim::{Rule, User};
/// let viewer = User::new("viewer", "viewer-token")
///     .may(Rule::new(&["get", "list", "watch"], &[""], &["services", "pods"]).namespaces(&["default"]))
///     .may(Rule::new(&["create"], &[""], &["pods/portforward"]).namespaces(&["default"]));
/// # let _ = viewer;
/// ```
#[derive(Clone, Debug)]
pub struct User {
    pub(crate) name: String,
    pub(crate) token: String,
    pub(crate) rules: Vec<Rule>,
}

/// One rule: some verbs on some resources. `*` in a list matches everything.
#[derive(Clone, Debug)]
pub struct Rule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Option<Vec<String>>,
    names: Option<Vec<String>>,
}

impl User {
    /// A user without any rights yet.
    pub fn new(name: &str, token: &str) -> Self {
        Self {
            name: name.into(),
            token: token.into(),
            rules: Vec::new(),
        }
    }

    /// Adds a rule.
    pub fn may(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

impl Rule {
    /// Verbs, API groups (empty text for the core one) and resources (`pods`, `pods/portforward`), cluster-wide.
    pub fn new(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Self {
        Self {
            verbs: owned(verbs),
            groups: owned(groups),
            resources: owned(resources),
            namespaces: None,
            names: None,
        }
    }

    /// Everything.
    pub fn everything() -> Self {
        Self::new(&["*"], &["*"], &["*"])
    }

    /// Only in these namespaces: a Role with its binding, where the rule alone is a ClusterRole.
    pub fn namespaces(mut self, namespaces: &[&str]) -> Self {
        self.namespaces = Some(owned(namespaces));
        self
    }

    /// Only objects of these names (`resourceNames`).
    pub fn names(mut self, names: &[&str]) -> Self {
        self.names = Some(owned(names));
        self
    }
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

/// Every user there is, by token.
#[derive(Debug, Default)]
pub(crate) struct Access {
    users: HashMap<String, User>,
}

impl Access {
    pub(crate) fn new(users: Vec<User>) -> Self {
        let users = users.into_iter().map(|u| (u.token.clone(), u)).collect();
        Self { users }
    }
}
