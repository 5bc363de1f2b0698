//! The command that logs in when the daemon cannot, because it has no terminal for a credential plugin.

use kubevpn_daemon::api::KubeconfigSelection;

/// `kubevpn connect` with the flags that find the same connection, for a shell.
pub(crate) fn command(selection: &KubeconfigSelection, namespace: &str) -> String {
    let mut words = Vec::new();
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let files = &selection.files[..];
    if files.len() > 1 {
        let list = std::env::join_paths(files).unwrap_or_default();
        words.push(format!("KUBECONFIG={}", quoted(&list.to_string_lossy())));
    }
    words.push("kubevpn connect".to_owned());
    let one = match files {
        [one] => Some(text(one)),
        _ => None,
    };
    let authority = selection.certificate_authority.as_deref().map(text);
    let timeout = selection.request_timeout;
    let timeout = timeout.map(|timeout| format!("{}s", timeout.as_secs_f64()));
    for (flag, value) in [
        ("--kubeconfig", &one),
        ("--context", &selection.context),
        ("--cluster", &selection.cluster),
        ("--user", &selection.user),
        ("--namespace", &Some(namespace.to_owned())),
        ("--server", &selection.server),
        ("--certificate-authority", &authority),
        ("--tls-server-name", &selection.tls_server_name),
        ("--request-timeout", &timeout),
        ("--as", &selection.impersonate),
    ] {
        if let Some(value) = value {
            words.push(format!("{flag} {}", quoted(value)));
        }
    }
    for group in &selection.impersonate_groups {
        words.push(format!("--as-group {}", quoted(group)));
    }
    if selection.insecure_skip_tls_verify {
        words.push("--insecure-skip-tls-verify".to_owned());
    }
    words.join(" ")
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.:@%+=,_-".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_that_find_it_again() {
        let selection = KubeconfigSelection {
            files: vec!["/home/jane/my config".into()],
            context: Some("prod".into()),
            impersonate: Some("o'neil".into()),
            impersonate_groups: vec!["a".into(), "b".into()],
            ..KubeconfigSelection::default()
        };
        assert_eq!(
            command(&selection, "shop"),
            r"kubevpn connect --kubeconfig '/home/jane/my config' --context prod --namespace shop --as 'o'\''neil' --as-group a --as-group b"
        );
        let several = KubeconfigSelection {
            files: vec!["/a".into(), "/b".into()],
            insecure_skip_tls_verify: true,
            ..KubeconfigSelection::default()
        };
        assert_eq!(
            command(&several, "shop"),
            "KUBECONFIG=/a:/b kubevpn connect --namespace shop --insecure-skip-tls-verify"
        );
    }
}
