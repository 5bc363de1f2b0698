//! Who may do what: bearer tokens, and rules as RBAC has them.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// A user, known by a bearer token, with what it may do.
///
/// ```
/// use kubevpn_sim::{AccessRule, User};
/// let viewer = User::new("viewer", "viewer-token")
///     .may(AccessRule::new(&["get", "list", "watch"], &[""], &["services", "pods"]).namespaces(&["default"]))
///     .may(AccessRule::new(&["create"], &[""], &["pods/portforward"]).namespaces(&["default"]));
/// # let _ = viewer;
/// ```
#[derive(Clone, Debug)]
pub struct User {
    pub(crate) name: String,
    pub(crate) token: String,
    pub(crate) rules: Vec<AccessRule>,
}

/// One rule: some verbs on some resources. `*` in a list matches everything.
#[derive(Clone, Debug)]
pub struct AccessRule {
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
    pub fn may(mut self, rule: AccessRule) -> Self {
        self.rules.push(rule);
        self
    }
}

impl AccessRule {
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
    users: RwLock<Vec<User>>,
}

/// What somebody wants to do, as rules judge it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deed<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    /// With its subresource: `pods/portforward`.
    pub(crate) resource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// Who sends no credentials.
pub(crate) const ANONYMOUS: &str = "system:anonymous";

/// What everybody may read, with and without credentials.
const PUBLIC: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

impl Access {
    pub(crate) fn new(users: Vec<User>) -> Self {
        Self {
            users: RwLock::new(users),
        }
    }

    pub(crate) fn add(&self, user: User) {
        let mut users = self.users.write().unwrap_or_else(PoisonError::into_inner);
        users.push(user);
    }

    /// The user of a token.
    pub(crate) fn user(&self, token: &str) -> Option<String> {
        let users = self.users();
        let user = users.iter().find(|u| u.token == token)?;
        Some(user.name.clone())
    }

    pub(crate) fn allows(&self, user: &str, deed: Deed<'_>) -> bool {
        self.has_rule(user, |rule| rule.allows(deed))
    }

    /// Whether a user may read a path that is no resource.
    pub(crate) fn allows_path(&self, user: &str, path: &str) -> bool {
        let under = |root: &str| path == root || path.starts_with(&format!("{root}/"));
        let known = user != ANONYMOUS && ["/api", "/apis", "/openapi"].into_iter().any(under);
        known || PUBLIC.contains(&path) || self.has_rule(user, AccessRule::is_everything)
    }

    /// What RBAC says to a deed it does not allow.
    pub(crate) fn why_not(user: &str, deed: Deed<'_>) -> String {
        let Deed {
            verb,
            group,
            resource,
            namespace,
            ..
        } = deed;
        let place = match namespace {
            "" => "at the cluster scope".into(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {place}")
    }

    fn has_rule(&self, user: &str, suits: impl Fn(&AccessRule) -> bool) -> bool {
        let users = self.users();
        let mut of_user = users.iter().filter(|u| u.name == user);
        of_user.any(|u| u.rules.iter().any(&suits))
    }

    fn users(&self) -> RwLockReadGuard<'_, Vec<User>> {
        self.users.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessRule {
    fn allows(&self, deed: Deed<'_>) -> bool {
        let resource = |r: &String| {
            r == "*"
                || r == deed.resource
                || r.strip_prefix("*/").is_some_and(|sub| {
                    let asked = deed.resource.split_once('/');
                    asked.is_some_and(|(_, asked)| asked == sub)
                })
        };
        has(&self.verbs, deed.verb)
            && has(&self.groups, deed.group)
            && self.resources.iter().any(resource)
            && self
                .namespaces
                .as_ref()
                .is_none_or(|n| n.iter().any(|n| n == deed.namespace))
            && self
                .names
                .as_ref()
                .is_none_or(|n| n.iter().any(|n| n == deed.name))
    }

    fn is_everything(&self) -> bool {
        let star = |list: &[String]| list.iter().any(|s| s == "*");
        star(&self.verbs)
            && star(&self.groups)
            && star(&self.resources)
            && self.namespaces.is_none()
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|s| s == "*" || s == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        let services = AccessRule::new(&["get", "list"], &[""], &["services"]);
        let forward = AccessRule::new(&["create"], &[""], &["pods/portforward"]);
        Access::new(vec![
            User::new("admin", "a").may(AccessRule::everything()),
            User::new("viewer", "v")
                .may(services.namespaces(&["x"]))
                .may(forward.names(&["web-0"])),
            User::new("any-log", "l").may(AccessRule::new(&["*"], &["*"], &["*/log"])),
        ])
    }

    fn deed(text: &'static str) -> Deed<'static> {
        let parts: Vec<_> = text.split(' ').collect();
        Deed {
            verb: parts[0],
            group: "",
            resource: parts[1],
            namespace: parts[2].trim_matches('-'),
            name: parts[3].trim_matches('-'),
        }
    }

    #[test]
    fn rules() {
        let access = access();
        for (user, text, allowed) in [
            ("admin", "delete nodes - n", true),
            ("viewer", "list services x -", true),
            ("viewer", "list services - -", false),
            ("viewer", "list services y -", false),
            ("viewer", "watch services x -", false),
            ("viewer", "create pods/portforward y web-0", true),
            ("viewer", "create pods/portforward y web-1", false),
            ("viewer", "create pods y web-0", false),
            ("any-log", "get pods/log y web-0", true),
            ("any-log", "get pods y web-0", false),
            ("nobody", "get pods y web-0", false),
        ] {
            assert_eq!(access.allows(user, deed(text)), allowed, "{user}: {text}");
        }
        assert_eq!(access.user("v").as_deref(), Some("viewer"));
        assert_eq!(access.user("x"), None);
        let pods = AccessRule::new(&["get"], &[""], &["pods"]);
        access.add(User::new("late", "x").may(pods));
        assert_eq!(access.user("x").as_deref(), Some("late"));
        assert!(access.allows("late", deed("get pods y web-0")));
    }

    #[test]
    fn paths() {
        let access = access();
        assert!(access.allows_path(ANONYMOUS, "/version"));
        assert!(!access.allows_path(ANONYMOUS, "/readyz/ping"));
        assert!(!access.allows_path(ANONYMOUS, "/apis"));
        assert!(access.allows_path("viewer", "/apis/apps/v1"));
        assert!(!access.allows_path("viewer", "/metrics"));
        assert!(access.allows_path("admin", "/metrics"));
    }
}
