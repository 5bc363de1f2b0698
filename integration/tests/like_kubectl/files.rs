//! Whole kubeconfigs, flags and the environment. `cases.rs` says what stands for what.

/// What the words in capitals stand for in whole kubeconfigs.
pub(crate) const WORDS: [(&str, &str); 6] = [
    ("WHOLE", "CLUSTERS, USERS, CONTEXTS, CURRENT"),
    ("CLUSTERS", "clusters: [{name: c, cluster: GOOD}]"),
    ("USERS", "users: [{name: u, user: {token: sesame}}]"),
    (
        "CONTEXTS",
        "contexts: [{name: c, context: {cluster: c, user: u}}]",
    ),
    ("CURRENT", "current-context: c"),
    (
        "GOOD",
        "{server: 'URL', certificate-authority: '@{ca-p256.crt}'}",
    ),
];

/// Whole kubeconfigs.
#[rustfmt::skip]
pub(crate) const CONFIGS: [(&str, &[&str]); 50] = [
    ("block style", &["apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster:\n    server: URL\n    certificate-authority: @{ca-p256.crt}\nusers:\n- name: u\n  user:\n    token: sesame\ncontexts:\n- name: c\n  context:\n    cluster: c\n    user: u\nCURRENT\n"]),
    ("json", &[r#"{"clusters": [{"name": "c", "cluster": {"server": "URL", "certificate-authority": "@{ca-p256.crt}"}}], "users": [{"name": "u", "user": {"token": "sesame"}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "current-context": "c"}"#]),
    ("no kind and version", &["{WHOLE}"]),
    ("kind alone", &["{kind: Config, WHOLE}"]),
    ("kind twice", &["kind: Config\nkind: Config\nCLUSTERS\nUSERS\nCONTEXTS\nCURRENT\n"]),
    ("other kind", &["{apiVersion: v1, kind: Pod, WHOLE}"]),
    ("other version", &["{apiVersion: v2, kind: Config, WHOLE}"]),
    ("null lists", &["{preferences: null, extensions: null, CLUSTERS, USERS, contexts: [{name: c, context: {cluster: c, user: u, namespace: null, extensions: null}}], CURRENT}"]),
    ("null users", &["{CLUSTERS, users: null, CONTEXTS, CURRENT}"]),
    ("null user", &["{CLUSTERS, users: [{name: u, user: null}], CONTEXTS, CURRENT}"]),
    ("no such user", &["{CLUSTERS, users: [], CONTEXTS, CURRENT}"]),
    ("no such cluster", &["{clusters: [{name: other, cluster: GOOD}], USERS, CONTEXTS, CURRENT}"]),
    ("no such context", &["{CLUSTERS, USERS, CONTEXTS, current-context: d}"]),
    ("no current context", &["{CLUSTERS, USERS, CONTEXTS}"]),
    ("context without a user", &["{CLUSTERS, USERS, contexts: [{name: c, context: {cluster: c}}], CURRENT}"]),
    ("context with an empty user", &["{CLUSTERS, users: [{name: '', user: {token: sesame}}], contexts: [{name: c, context: {cluster: c, user: ''}}], CURRENT}"]),
    ("unused user is broken", &["{CLUSTERS, users: [{name: x, user: {token: [1]}}, {name: u, user: {token: sesame}}], CONTEXTS, CURRENT}"]),
    ("unused user is null", &["{CLUSTERS, users: [{name: x, user: null}, {name: u, user: {token: sesame}}], CONTEXTS, CURRENT}"]),
    ("unused entries are null", &["{clusters: [null, {name: c, cluster: GOOD}], users: [null, {name: u, user: {token: sesame}}], contexts: [null, {name: c, context: {cluster: c, user: u}}], CURRENT}"]),
    ("unused entries have no name", &["{clusters: [{cluster: {}}, {name: c, cluster: GOOD}], users: [{user: {}}, {name: u, user: {token: sesame}}], contexts: [{context: {}}, {name: c, context: {cluster: c, user: u}}], CURRENT}"]),
    ("unused cluster without a server", &["{clusters: [{name: x, cluster: {}}, {name: c, cluster: GOOD}], USERS, CONTEXTS, CURRENT}"]),
    ("unused cluster with a missing file", &["{clusters: [{name: x, cluster: {server: 'https://x', certificate-authority: /missing}}, {name: c, cluster: GOOD}], USERS, CONTEXTS, CURRENT}"]),
    ("user twice", &["{CLUSTERS, users: [{name: u, user: {token: first}}, {name: u, user: {token: second}}], CONTEXTS, CURRENT}"]),
    ("token twice", &["CLUSTERS\nusers:\n- name: u\n  user:\n    token: first\n    token: second\nCONTEXTS\nCURRENT\n"]),
    ("anchors", &["users: [{name: u, user: &u {token: sesame}}, {name: v, user: *u}]\nCLUSTERS\ncontexts: [{name: c, context: {cluster: c, user: v}}]\nCURRENT\n"]),
    ("merge key", &["CLUSTERS\nusers:\n- name: u\n  user: &u\n    token: sesame\n- name: v\n  user:\n    <<: *u\n    as: joe\ncontexts: [{name: c, context: {cluster: c, user: v}}]\nCURRENT\n"]),
    ("keys in another case", &["{Clusters: [{name: c, cluster: GOOD}], CLUSTERS, users: [{name: u, user: {Token: wrong, token: sesame}}], CONTEXTS, CURRENT}"]),
    ("byte order mark", &["\u{feff}{WHOLE}"]),
    ("windows lines", &["apiVersion: v1\r\nkind: Config\r\nclusters:\r\n- name: c\r\n  cluster: GOOD\r\nusers:\r\n- name: u\r\n  user:\r\n    token: sesame\r\nCONTEXTS\r\nCURRENT\r\n"]),
    ("tabs", &["CLUSTERS\nusers:\n- name: u\n  user:\n\t  token: sesame\nCONTEXTS\nCURRENT\n"]),
    ("a document's mark", &["---\nCLUSTERS\nUSERS\nCONTEXTS\nCURRENT\n"]),
    ("two documents", &["CLUSTERS\nUSERS\nCONTEXTS\nCURRENT\n---\nusers: [{name: u, user: {token: second}}]\n"]),
    ("second document is broken", &["CLUSTERS\nUSERS\nCONTEXTS\nCURRENT\n---\nusers: [\n"]),
    ("first document is empty", &["---\n---\nCLUSTERS\nUSERS\nCONTEXTS\nCURRENT\n"]),
    ("context named yes", &["{CLUSTERS, USERS, contexts: [{name: yes, context: {cluster: c, user: u}}], current-context: yes}"]),
    ("empty", &[""]),
    ("comments alone", &["# nothing\n"]),
    ("list", &["[a, b]"]),
    ("cut off", &["{CLUSTERS, users: [{name: u, user: {token: ses"]),
    ("split over files", &["{CLUSTERS, CURRENT}", "{USERS}", "{CONTEXTS}"]),
    ("first file wins", &["{CLUSTERS, users: [{name: u, user: {token: first}}], CONTEXTS, CURRENT}", "{users: [{name: u, user: {token: second}}], contexts: [{name: c, context: {cluster: c, user: v}}], current-context: d}"]),
    ("first current context wins", &["{current-context: d}", "{CLUSTERS, users: [{name: u, user: {token: of-c}}, {name: v, user: {token: of-d}}], contexts: [{name: c, context: {cluster: c, user: u}}, {name: d, context: {cluster: c, user: v}}], CURRENT}"]),
    ("empty current context first", &["{current-context: ''}", "{WHOLE}"]),
    ("entries are not mixed", &["{users: [{name: u, user: {username: jane, password: secret}}]}", "{WHOLE}"]),
    ("empty entry first", &["{users: [{name: u, user: {}}]}", "{WHOLE}"]),
    ("empty file first", &["", "{WHOLE}"]),
    ("broken file second", &["{WHOLE}", "{users: ["]),
    ("other kind second", &["{WHOLE}", "{apiVersion: v1, kind: Pod}"]),
    ("namespace of odd letters", &["{CLUSTERS, USERS, contexts: [{name: c, context: {cluster: c, user: u, namespace: Shop_1}}], CURRENT}"]),
    ("names with spaces", &["{clusters: [{name: 'my cluster', cluster: GOOD}], users: [{name: 'jane doe/x', user: {token: sesame}}], contexts: [{name: 'a b@c', context: {cluster: 'my cluster', user: 'jane doe/x'}}], current-context: 'a b@c'}"]),
];

/// Of this kubeconfig.
pub(crate) const MANY: &str = "{clusters: [{name: c, cluster: GOOD}, {name: away, cluster: {server: 'https://127.0.0.1:1'}}, {name: http, cluster: \
    {server: 'http://ADDRESS'}}], users: [{name: u, user: {token: of-u}}, {name: v, user: {username: jane, password: secret}}, {name: w, \
    user: {client-certificate: '@{client-p256.crt}', client-key: '@{client-p256.key}'}}, \
    {name: f, user: {tokenFile: token}}, {name: z, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, \
    interactiveMode: Never}}}], contexts: [{name: c, context: {cluster: c, user: u}}, {name: d, context: {cluster: c, user: v}}, \
    {name: away, context: {cluster: away, user: w}}, {name: z, context: {cluster: c, user: z}}, {name: f, context: {cluster: c, user: f}}], current-context: c}";

#[rustfmt::skip]
pub(crate) const FLAGS: [(&str, &[&str]); 33] = [
    ("none", &[]),
    ("context", &["--context", "d"]),
    ("empty context", &["--context", ""]),
    ("unknown context", &["--context", "e"]),
    ("user", &["--user", "v"]),
    ("user with a certificate", &["--user", "w"]),
    ("unknown user", &["--user", "nobody"]),
    ("empty user", &["--user", ""]),
    ("cluster", &["--context", "away", "--cluster", "c"]),
    ("unknown cluster", &["--cluster", "nowhere"]),
    ("empty cluster", &["--cluster", ""]),
    ("token", &["--token", "of-flag"]),
    ("empty token", &["--token", ""]),
    ("token over basic", &["--context", "d", "--token", "of-flag"]),
    ("token over a certificate", &["--user", "w", "--token", "of-flag"]),
    ("token over a plugin", &["--context", "z", "--token", "of-flag"]),
    ("token over a token file", &["--context", "f", "--token", "of-flag"]),
    ("token without tls", &["--cluster", "http", "--token", "of-flag"]),
    ("certificate without tls", &["--cluster", "http", "--user", "w"]),
    ("plugin without tls", &["--cluster", "http", "--user", "z"]),
    ("server", &["--context", "away", "--server", "URL", "--certificate-authority", "@{ca-p256.crt}"]),
    ("short server", &["--context", "away", "-s", "URL", "--insecure-skip-tls-verify"]),
    ("server without a scheme", &["--server", "ADDRESS"]),
    ("server of http", &["--server", "http://ADDRESS"]),
    ("server of another authority", &["--context", "away", "--server", "URL"]),
    ("authority of another", &["--certificate-authority", "@{ca-p384.crt}"]),
    ("missing authority", &["--certificate-authority", "missing.crt"]),
    ("insecure over an authority", &["--insecure-skip-tls-verify"]),
    ("insecure and an authority", &["--insecure-skip-tls-verify", "--certificate-authority", "@{ca-p256.crt}"]),
    ("tls-server-name", &["--tls-server-name", "other.test"]),
    ("tls-server-name of the certificate", &["--tls-server-name", "localhost"]),
    ("namespace", &["--namespace", "shop"]),
    ("another file", &["--kubeconfig", "sub/../config"]),
];

/// The case, variables, and flags.
type Environment = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

/// `KUBECONFIG` and what else there is.
#[rustfmt::skip]
pub(crate) const ENVIRONMENTS: [Environment; 12] = [
    ("missing file first", &[("KUBECONFIG", "DIR/missing:DIR/config")], &[]),
    ("empty parts", &[("KUBECONFIG", ":DIR/config::")], &[]),
    ("relative path", &[("KUBECONFIG", "config")], &[]),
    ("the same file twice", &[("KUBECONFIG", "DIR/config:DIR/config")], &[]),
    ("directory", &[("KUBECONFIG", "DIR/sub:DIR/config")], &[]),
    ("all missing", &[("KUBECONFIG", "DIR/missing")], &[]),
    ("empty", &[("KUBECONFIG", "")], &[]),
    ("home", &[("KUBECONFIG", ""), ("HOME", "DIR/other-home")], &[]),
    ("flag over a missing file", &[("KUBECONFIG", "DIR/missing")], &["--kubeconfig", "config"]),
    ("missing file of a flag", &[], &["--kubeconfig", "missing"]),
    ("proxy for loopback", &[("HTTPS_PROXY", "http://127.0.0.1:1")], &[]),
    ("server alone", &[("KUBECONFIG", "DIR/missing")], &["--server", "URL", "--insecure-skip-tls-verify", "--token", "of-flag"]),
];
