//! What a request is about, read from its method and URI as an API server does.

use std::collections::BTreeMap;

use http::Method;

use crate::selector::{query, unescape};

/// A request, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) verb: &'static str,
    /// `None` for a path that is no resource.
    pub(crate) resource: Option<Resource>,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Info {
    pub(crate) fn read(method: &Method, path: &str, query_text: &str) -> Self {
        let mut info = Self {
            verb: plain_verb(method),
            resource: None,
            path: path.into(),
            query: query(query_text),
        };
        let parts: Vec<String> = path
            .split('/')
            .filter(|p| !p.is_empty())
            .map(|p| unescape(p, false))
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return info,
        };
        let (watching, rest) = match rest {
            ["watch", rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let (namespace, rest) = match rest {
            [] => return info,
            ["namespaces", ns, sub, after @ ..] if !["status", "finalize"].contains(sub) => {
                let rest: Vec<&str> = [&[*sub], after].concat();
                (*ns, rest)
            }
            rest => ("", rest.to_vec()),
        };
        let at = |i: usize| rest.get(i).copied().unwrap_or_default();
        let mut resource = Resource {
            group: group.into(),
            version: version.into(),
            plural: at(0).into(),
            subresource: at(2).into(),
            namespace: namespace.into(),
            name: at(1).into(),
        };
        // A namespace is in itself, as rules see it.
        if resource.plural == "namespaces" && resource.group.is_empty() {
            resource.namespace.clone_from(&resource.name);
        }
        let named = !resource.name.is_empty();
        let flag =
            |name: &str| matches!(info.text(name), "1" | "true" | "True" | "TRUE" | "t" | "T");
        info.verb = match *method {
            _ if watching => "watch",
            Method::GET | Method::HEAD if named => "get",
            Method::GET | Method::HEAD if flag("watch") => "watch",
            Method::GET | Method::HEAD => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if named => "delete",
            Method::DELETE => "deletecollection",
            _ => "",
        };
        if !named && matches!(info.verb, "list" | "watch" | "deletecollection") {
            let fields = info.text("fieldSelector").split(',');
            let mut names = fields.filter_map(|f| f.strip_prefix("metadata.name="));
            if let Some(name) = names.next() {
                resource.name = name.trim_start_matches('=').into();
            }
        }
        info.resource = Some(resource);
        info
    }

    /// A query parameter; empty if it is not there.
    pub(crate) fn text(&self, name: &str) -> &str {
        let values = self.query.get(name);
        values.and_then(|v| v.first()).map_or("", String::as_str)
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, uri: &str) -> String {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let info = Info::read(&method.parse().unwrap(), path, query);
        match info.resource {
            None => format!("{} {}", info.verb, info.path),
            Some(r) => format!(
                "{} {}/{} ns={} name={} sub={}",
                info.verb, r.group, r.plural, r.namespace, r.name, r.subresource
            ),
        }
    }

    #[test]
    fn requests() {
        for (method, uri, wanted) in [
            ("GET", "/version", "get /version"),
            ("GET", "/api/v1", "get /api/v1"),
            ("GET", "/apis/apps/v1", "get /apis/apps/v1"),
            ("GET", "/api/v1/pods", "list /pods ns= name= sub="),
            (
                "GET",
                "/api/v1/namespaces/a/pods?watch=true",
                "watch /pods ns=a name= sub=",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/services/b?watch=1",
                "get /services ns=a name=b sub=",
            ),
            (
                "GET",
                "/api/v1/watch/namespaces/a/services/b",
                "watch /services ns=a name=b sub=",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Dweb",
                "list /pods ns=a name=web sub=",
            ),
            (
                "GET",
                "/api/v1/namespaces/a",
                "get /namespaces ns=a name=a sub=",
            ),
            (
                "GET",
                "/api/v1/namespaces",
                "list /namespaces ns= name= sub=",
            ),
            (
                "POST",
                "/api/v1/namespaces/a/pods/p/portforward?ports=1",
                "create /pods ns=a name=p sub=portforward",
            ),
            (
                "GET",
                "/apis/networking.k8s.io/v1/ipaddresses/fd00%3A%3A1",
                "get networking.k8s.io/ipaddresses ns= name=fd00::1 sub=",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a/pods",
                "deletecollection /pods ns=a name= sub=",
            ),
            ("TRACE", "/", "other /"),
        ] {
            assert_eq!(read(method, uri), wanted, "{method} {uri}");
        }
    }
}
