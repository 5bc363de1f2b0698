//! Kubeconfigs, flags and environments that are refused, and the error for each.

use super::*;

#[test]
fn invalid_namespaces() {
    let of = |namespace: &str| Setup::of(TWO).args(|args| args.namespace = Some(namespace.into()));
    for namespace in ["a b", "a/b", "..", "Shop", "-a", "a-", &"a".repeat(64)] {
        let said = of(namespace).wrong();
        assert!(
            said.starts_with(&format!("{namespace:?} can be no namespace")),
            "{said}"
        );
    }
    // Counts as absent, as with kubectl.
    assert_eq!(of("").load().namespace, "shop");
    assert_eq!(of("team-a").load().namespace, "team-a");
    let in_file = Setup::of(&TWO.replace("namespace: shop", "namespace: the shop"));
    assert!(in_file.wrong().contains("the context of the kubeconfig"));
}

#[test]
fn a_file_that_is_missing_or_broken() {
    let missing = Setup::empty().args(|a| a.kubeconfig = Some("/nowhere/config".into()));
    assert_eq!(
        missing.wrong(),
        "there is no kubeconfig /nowhere/config: check --kubeconfig"
    );

    let none = Setup::empty();
    let usual = none.path(".kube/config");
    assert_eq!(
        none.wrong(),
        format!(
            "no kubeconfig found (looked at {}): pass --kubeconfig, or set KUBECONFIG",
            usual.display()
        )
    );
    let homeless = load(&KubeconfigArgs::default(), &Env::of([("A", "b")]));
    assert_eq!(
        homeless.unwrap_err().to_string(),
        "no kubeconfig found (no home directory either): pass --kubeconfig, or set KUBECONFIG"
    );

    let broken = Setup::of("apiVersion: v1\nkind: Config\nclusters: [\n");
    let error = load(&broken.args, &broken.env()).unwrap_err();
    let said = error.to_string();
    let path = broken.path("config");
    let start = format!("the kubeconfig {} is broken at line ", path.display());
    assert!(said.starts_with(&start), "{said}");
    assert!(
        error.source().is_none(),
        "a library's error quotes the file"
    );
    let typed = Setup::of("clusters: seven\n");
    assert!(
        typed
            .wrong()
            .contains("is broken at line 1, column 11: clusters cannot be a text;"),
        "{}",
        typed.wrong()
    );
    let binary = Setup::empty();
    std::fs::write(binary.path("config"), [0x80, 0xff, 0x00]).unwrap();
    let path = binary.path("config");
    let binary = binary.args(|a| a.kubeconfig = Some(path));
    assert!(
        binary
            .wrong()
            .contains("is broken: it is no text; correct it"),
        "{}",
        binary.wrong()
    );

    let dir = Setup::empty();
    let path = dir.path("");
    let dir = dir.args(|a| a.kubeconfig = Some(path));
    assert!(
        dir.wrong()
            .ends_with("cannot be read: check that it exists and is yours to read")
    );

    let huge = Setup::of("");
    let file = std::fs::File::options()
        .write(true)
        .open(huge.path("config"));
    file.unwrap().set_len(1 << 30).unwrap();
    assert!(
        huge.wrong()
            .contains("has 1073741824 bytes, too many for a kubeconfig")
    );

    let first = Setup::of("kind: Config\n");
    let second = first.file("second", "kind: Other\n");
    let list = std::env::join_paths([first.path("config"), second.clone()]).unwrap();
    let list = list.to_str().unwrap().to_owned();
    let first = first.args(|a| a.kubeconfig = None).var("KUBECONFIG", &list);
    let start = format!(
        "the kubeconfig {} is broken at line 1, column 7: its kind is not \"Config\"",
        second.display()
    );
    assert!(first.wrong().starts_with(&start), "{}", first.wrong());
}

#[test]
fn missing_and_wrong_selections() {
    for empty in ["", "{}", "current-context: ''\nclusters: null\n"] {
        let said = Setup::of(empty).wrong();
        assert!(said.contains("names no cluster, context or user"), "{said}");
    }
    let uncertain = TWO.replace("current-context: blue", "");
    assert_eq!(
        Setup::of(&uncertain).wrong(),
        "the kubeconfig has no current-context: pass --context, one of blue, red"
    );
    assert_eq!(
        Setup::of(TWO)
            .args(|a| a.context = Some("grey".into()))
            .wrong(),
        r#"the kubeconfig has no context "grey": pass --context, one of blue, red"#
    );
    assert_eq!(
        Setup::of(TWO)
            .args(|a| a.cluster = Some("grey".into()))
            .wrong(),
        r#"the kubeconfig has no cluster "grey": pass --cluster, one of blue, red"#
    );
    assert_eq!(
        Setup::of(TWO)
            .args(|a| a.user = Some("jack".into()))
            .wrong(),
        r#"the kubeconfig has no user "jack": pass --user, one of jane, joe"#
    );
    // A user that the context names and no file defines: kubectl continues without credentials.
    let orphan = Setup::of(&TWO.replace("user: jane", "user: jack")).load();
    assert_eq!(token(&orphan), None);
    let many: String = (0..200)
        .map(|n| format!("- {{name: c{n}, context: {{cluster: blue, user: jane}}}}\n"))
        .collect();
    let many = format!("contexts:\n{many}");
    assert_eq!(
        Setup::of(&many).wrong(),
        "the kubeconfig has no current-context: pass --context, one of c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 190 more"
    );
    assert_eq!(
        Setup::of(TWO)
            .args(|a| a.impersonate_groups = vec!["ops".into()])
            .wrong(),
        "--as-group needs --as: pass the user to act as"
    );
}

#[test]
fn entries_that_cannot_be_used() {
    let cluster = |fields: &str| {
        let server = "server: 'https://blue.test:6443'";
        Setup::of(&TWO.replace(server, fields))
    };
    assert_eq!(
        cluster("certificate-authority: x").wrong(),
        r#"cluster "blue" of the kubeconfig has no server: add it, or pass --server"#
    );
    for server in [
        "ftp://blue.test",
        "https://",
        "https://a b",
        "https://blue.test:0",
        "https://blue.test:65536",
        "https://[::1]:65536",
    ] {
        assert_eq!(
            cluster(&format!("server: '{server}'")).wrong(),
            format!(
                "the server {server:?} is no http or https URL with a host, and with a port from 1 to 65535 if with any: correct it in the kubeconfig, or pass --server"
            )
        );
    }
    for server in [
        "https://blue.test",
        "https://[::1]",
        "https://u:1@blue.test:443/a:b",
    ] {
        cluster(&format!("server: '{server}'")).load();
    }
    let with = |field: &str| cluster(&format!("server: 'https://blue.test', {field}"));
    let missing = with("certificate-authority: ca.crt");
    assert_eq!(
        missing.wrong(),
        format!(
            "the certificate authority {} cannot be read: check that it exists and is yours to read",
            missing.path("ca.crt").display()
        )
    );
    missing.file("ca.crt", "-----BEGIN NOTHING-----\n");
    assert_eq!(
        missing.wrong(),
        format!(
            "the certificate authority {} holds no PEM certificate: check it",
            missing.path("ca.crt").display()
        )
    );
    let field = r#"certificate-authority-data of cluster "blue""#;
    assert_eq!(
        with("certificate-authority-data: '%%'").wrong(),
        format!("{field} in the kubeconfig is not base64: correct it")
    );
    assert_eq!(
        with("certificate-authority-data: aGVsbG8K").wrong(),
        format!("{field} holds no PEM certificate: check it")
    );
    assert_eq!(
        with("proxy-url: 'ftp://u:secret@p'").wrong(),
        r#"the proxy of cluster "blue" of the kubeconfig cannot be used: proxies of the kind "ftp" are not supported: use http, https, socks5 or socks5h"#
    );
    let bad = Setup::of(TWO)
        .var("HTTPS_PROXY", "http://u:se cret@p")
        .wrong();
    assert!(
        bad.starts_with("the proxy of HTTPS_PROXY cannot be used: the proxy is no URL"),
        "{bad}"
    );
    assert!(!bad.contains("cret"));

    let user = |fields: &str| Setup::of(&TWO.replace("token: of-jane", fields));
    assert_eq!(
        user("client-certificate-data: eA==").wrong(),
        r#"user "jane" of the kubeconfig has no client-key: add it, or pass another --user"#
    );
    assert_eq!(
        user("client-key: x").load().config.auth_info.client_key,
        None
    );
    let files = user("client-key: jane.key, client-certificate: jane.crt");
    let start = format!(
        "the client certificate {} cannot be read",
        files.path("jane.crt").display()
    );
    assert!(files.wrong().starts_with(&start), "{}", files.wrong());
    files.file("jane.crt", "");
    let start = format!(
        "the client key {} cannot be read",
        files.path("jane.key").display()
    );
    assert!(files.wrong().starts_with(&start), "{}", files.wrong());
    for (fields, first, second) in [
        ("token: t, username: u", "a token", "a username or password"),
        (
            "tokenFile: t, password: p",
            "a token",
            "a username or password",
        ),
        (
            "client-certificate: c, client-certificate-data: eA==, client-key-data: eA==",
            "client-certificate",
            "client-certificate-data",
        ),
        (
            "auth-provider: {name: oidc}, exec: {command: sh}",
            "an auth-provider",
            "a credential plugin",
        ),
    ] {
        let both = format!(
            "user \"jane\" of the kubeconfig has both {first} and {second}: remove one of them"
        );
        assert_eq!(user(fields).wrong(), both);
    }
    let both = with("certificate-authority-data: eA==, insecure-skip-tls-verify: true");
    assert_eq!(
        both.wrong(),
        r#"cluster "blue" of the kubeconfig has both certificate-authority-data and insecure-skip-tls-verify: remove one of them"#
    );
    let files = user("tokenFile: token");
    let start = format!("the token file {} cannot be", files.path("token").display());
    assert!(files.wrong().starts_with(&start), "{}", files.wrong());
}

#[test]
fn entries_that_are_not_selected_may_be_invalid() {
    let broken = "\
contexts:
- {name: blue, context: {cluster: blue, user: jane}}
- {name: red, context: seven}
- null
clusters:
- {name: blue, cluster: {server: 'https://blue.test'}}
- {name: red, cluster: {server: [of-red]}}
- {name: twice, cluster: {}}
- {name: twice, cluster: {}}
users:
- {name: jane, user: {token: of-jane, username: '', password: '', tokenFile: ''}}
- {name: joe, user: {token: 12345, exec: {command: {a: of-joe}}}}
- {user: {token: of-nobody}}
kind: Config
kind: Config
";
    let broken = Setup::of(broken).args(|a| a.context = Some("blue".into()));
    let loaded = broken.load();
    assert_eq!(token(&loaded), Some("of-jane"));
    assert_eq!(loaded.config.auth_info.username, None, "empty is absent");
    let file = broken.path("config").display().to_string();
    let notes: Vec<_> = loaded
        .notes
        .iter()
        .map(|note| note.replace(&file, "FILE"))
        .collect();
    let note = |at: &str, problem: &str| {
        format!(
            "the kubeconfig FILE is broken at line {at}: {problem}; correct it, or pass another with --kubeconfig"
        )
    };
    assert_eq!(
        notes,
        [
            note("4, column 3", "contexts[2] has no name"),
            note("13, column 3", "users[2] has no name"),
            note("3, column 24", "contexts[1].context cannot be a text"),
            note(
                "7, column 33",
                "clusters[1].cluster.server cannot be a list"
            ),
            note(
                "9, column 3",
                "the name of clusters[2].cluster is taken twice"
            ),
            note("12, column 29", "users[1].user.token cannot be a number"),
        ]
    );
    // If they are selected, they matter.
    let text = std::fs::read_to_string(broken.path("config")).unwrap();
    let red = Setup::of(&text).args(|a| a.context = Some("red".into()));
    let wrong = red.wrong();
    assert!(
        wrong.contains("contexts[1].context cannot be a text"),
        "{wrong}"
    );
}

/// Errors that only the client finds: the text of `build`'s error and of its causes.
#[tokio::test]
async fn entries_that_the_client_cannot_use() {
    let user = |fields: &str| Setup::of(&TWO.replace("token: of-jane", fields));
    let build = |loaded: Loaded| match build(loaded.config, &Options::new("kubevpn/0.0.0")) {
        Ok(_) => panic!("built"),
        Err(e) => e.to_string(),
    };
    let keys = user("client-certificate-data: aGVsbG8K, client-key-data: aGVsbG8K").load();
    assert!(build(keys).starts_with("a certificate or key of the kubeconfig cannot be used"));
    let line = user(r#"token: "a\nb""#).load();
    assert_eq!(
        build(line),
        "the user's token holds characters that no token has, such as a line break: log in again, or correct --token or \
         KUBEVPN_TOKEN"
    );
    let provider = user("auth-provider: {name: gcp, config: {cmd-path: /bin/false}}").load();
    assert!(
        build(provider).ends_with("was removed from Kubernetes: use gke-gcloud-auth-plugin, which `gcloud container clusters get-credentials` sets up")
    );
    let old = "auth-provider: {name: oidc, config: {id-token: a.eyJleHAiOjF9.c, refresh-token: r}}";
    assert!(
        build(user(old).load())
            .starts_with("the id-token of the kubeconfig's auth-provider has expired")
    );
    let act = Setup::of(TWO)
        .args(|a| a.impersonate = Some("a\nb".into()))
        .load();
    assert!(build(act).starts_with("a header of every request cannot be made"));
    let name = Setup::of(TWO)
        .args(|a| a.tls_server_name = Some("a b".into()))
        .load();
    assert_eq!(
        build(name),
        r#"tls-server-name "a b" is neither a DNS name nor an address"#
    );
}

#[test]
fn no_secret_is_printed() {
    let jane = Setup::of(TWO).var("HTTPS_PROXY", "http://u:of-proxy@p");
    let shown = format!("{:?}", jane.load());
    assert!(!shown.contains("of-"), "{shown}");
    for login in [
        "of-user:of/pass",
        "of-user:1?of-pass",
        "of-token/of",
        "o:of-a://of-b",
    ] {
        for server in [format!("https://{login}@host"), format!("{login}@host:x")] {
            let setup = Setup::empty().args(|a| a.server = Some(server.clone()));
            let shown = match load(&setup.args, &setup.env()) {
                Ok(loaded) => format!("{} {loaded:?}", loaded.server),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(shown.contains("host") && !shown.contains("of"), "{shown}");
        }
        let proxy = Setup::of(TWO).var("HTTPS_PROXY", &format!("{login}@host:1"));
        let said = proxy.wrong();
        assert!(
            said.contains("percent-encode") && !said.contains("of-"),
            "{said}"
        );
    }
    let joe = Setup::of(TWO).args(|a| {
        a.context = Some("red".into());
        a.token = Some("given-token".into());
    });
    assert!(!format!("{:?}{:?}", joe.args, joe.load()).contains("given-token"));
}

#[test]
fn contents_in_place_of_a_path_are_not_printed() {
    let key = "-----BEGIN PRIVATE KEY-----\nof-key\n-----END PRIVATE KEY-----\n";
    let jwt = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJqYW5lIn0.of-jane";
    let long = "of-".repeat(100);
    let encoded = "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCg/of-key";
    for (field, value) in [
        ("client-certificate: crt, client-key", key),
        ("client-certificate: crt, client-key", encoded),
        ("tokenFile", jwt),
        ("tokenFile", &long),
    ] {
        let field = format!("{field}: {value:?}");
        let setup = Setup::of(&TWO.replace("token: of-jane", &field));
        setup.file("crt", "");
        let said = setup.wrong();
        assert!(
            said.contains("(not shown: contents in place of a path)"),
            "{said}"
        );
        assert!(!said.contains("of-"), "{said}");
    }
    let whole = TWO
        .trim_end()
        .replace("password: secret}}", "password: secret");
    let in_variable = Setup::empty().var("KUBECONFIG", &whole);
    assert_eq!(
        in_variable.wrong(),
        "no kubeconfig found (KUBECONFIG holds contents, and not paths): pass --kubeconfig, or set KUBECONFIG"
    );
    let in_flag = Setup::empty().args(|a| a.kubeconfig = Some(whole.into()));
    let said = in_flag.wrong();
    assert!(
        said.contains("(not shown: contents in place of a path)"),
        "{said}"
    );
    assert!(!said.contains("secret"), "{said}");
}
