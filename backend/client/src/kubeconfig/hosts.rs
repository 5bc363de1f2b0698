//! Hosts that kubectl and its credential plugins connect to in any context: a proxy into one cluster must not take their
//! traffic.

use std::path::Path;

use http::Uri;
use kube::config::{AuthInfo, Cluster, ExecConfig};

use super::files::Files;

/// Limit, so that the list fits into an environment variable.
const MOST: usize = 500;

/// Hosts to which the login programs of clouds connect; a leading dot means all hosts below.
const CLOUDS: [(&[&str], &[&str]); 4] = [
    (
        &["aws", "aws-iam-authenticator"],
        &[".amazonaws.com", ".amazonaws.com.cn", ".awsapps.com"],
    ),
    (
        &["gke-gcloud-auth-plugin", "gcloud"],
        &[".googleapis.com", "accounts.google.com"],
    ),
    (
        &["kubelogin", "az"],
        &[
            "login.microsoftonline.com",
            "login.microsoftonline.us",
            "login.chinacloudapi.cn",
        ],
    ),
    (&["doctl"], &["api.digitalocean.com"]),
];

/// The API servers of all clusters and the users' login providers, as far as their entries name them: hosts for `NO_PROXY`.
pub(super) fn hosts(files: &Files) -> Vec<String> {
    let mut hosts = Vec::new();
    let mut add = |host: &str| {
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        if !host.is_empty() && !hosts.contains(&host) && hosts.len() < MOST {
            hosts.push(host);
        }
    };
    let clusters = files
        .clusters
        .0
        .iter()
        .filter_map(|entry| entry.read::<Cluster>().ok());
    for server in clusters.filter_map(|cluster| cluster.server) {
        let url = match server.contains("://") {
            true => server,
            false => format!("https://{server}"),
        };
        if let Ok(url) = url.trim().parse::<Uri>() {
            add(url.host().unwrap_or_default());
        }
    }
    let users = files
        .users
        .0
        .iter()
        .filter_map(|entry| entry.read::<AuthInfo>().ok());
    for user in users {
        for text in user
            .auth_provider
            .iter()
            .flat_map(|p| p.config.get("idp-issuer-url"))
        {
            urls_in(text, &mut add);
        }
        if let Some(exec) = &user.exec {
            log_ins(exec, &mut add);
        }
    }
    hosts
}

fn log_ins(exec: &ExecConfig, add: &mut impl FnMut(&str)) {
    let variables = exec
        .env
        .iter()
        .flatten()
        .filter_map(|variable| variable.get("value"));
    for text in exec.args.iter().flatten().chain(variables) {
        urls_in(text, add);
    }
    let command = Path::new(exec.command.as_deref().unwrap_or_default());
    let program = command
        .file_stem()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    for (programs, hosts) in CLOUDS {
        if programs.contains(&program) {
            hosts.iter().copied().for_each(&mut *add);
        }
    }
}

/// The hosts of the URLs in a text.
fn urls_in(text: &str, add: &mut impl FnMut(&str)) {
    for (scheme, rest) in text
        .match_indices("://")
        .map(|(at, mark)| (at, &text[at + mark.len()..]))
    {
        let end = rest
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | ','));
        let authority = &rest[..end.unwrap_or(rest.len())];
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        let host = match host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            // A user and the beginning of a password that is not percent-encoded.
            Some(_) if !host.starts_with('[') => continue,
            _ => host,
        };
        if scheme > 0 {
            add(host);
        }
    }
}
