//! Flags, files and environment become a configuration, or an error.

mod refused;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use kubevpn_client::{
    Env, KubeconfigArgs, KubeconfigError, Loaded, Options, build, entry_names, load,
};
use secrecy::ExposeSecret;
use tempfile::TempDir;

/// Two clusters, two users, two contexts.
const TWO: &str = "\
apiVersion: v1
kind: Config
current-context: blue
contexts:
- {name: blue, context: {cluster: blue, user: jane, namespace: shop}}
- {name: red, context: {cluster: red, user: joe}}
clusters:
- {name: blue, cluster: {server: 'https://blue.test:6443'}}
- {name: red, cluster: {server: 'https://red.test', tls-server-name: inner.test}}
users:
- {name: jane, user: {token: of-jane}}
- {name: joe, user: {username: joe, password: secret}}
";

/// A home directory, flags and an environment.
struct Setup {
    dir: TempDir,
    args: KubeconfigArgs,
    vars: Vec<(String, String)>,
}

impl Setup {
    /// With this file for `--kubeconfig`.
    fn of(yaml: &str) -> Self {
        let mut setup = Self::empty();
        setup.args.kubeconfig = Some(setup.file("config", yaml));
        setup
    }

    fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap().to_owned();
        Self {
            args: KubeconfigArgs::default(),
            vars: vec![("HOME".into(), home)],
            dir,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    fn var(mut self, name: &str, value: &str) -> Self {
        self.vars.push((name.into(), value.into()));
        self
    }

    fn args(mut self, change: impl FnOnce(&mut KubeconfigArgs)) -> Self {
        change(&mut self.args);
        self
    }

    fn env(&self) -> Env {
        let mut env = Env::of(self.vars.clone());
        env.service_account = self.path("serviceaccount");
        env
    }

    fn load(&self) -> Loaded {
        load(&self.args, &self.env()).unwrap()
    }

    /// The sentence.
    fn wrong(&self) -> String {
        let error = load(&self.args, &self.env()).unwrap_err();
        error.to_string()
    }
}

fn token(loaded: &Loaded) -> Option<&str> {
    let token = loaded.config.auth_info.token.as_ref();
    token.map(ExposeSecret::expose_secret)
}

fn certificate() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["ca.test".to_owned()]).unwrap();
    params.self_signed(&key).unwrap().pem()
}

#[test]
fn the_current_context() {
    let setup = Setup::of(TWO);
    let loaded = setup.load();
    assert_eq!(loaded.context.as_deref(), Some("blue"));
    assert_eq!(loaded.cluster.as_deref(), Some("blue"));
    assert_eq!(loaded.user.as_deref(), Some("jane"));
    assert_eq!(loaded.namespace, "shop");
    assert_eq!(loaded.config.default_namespace, "shop");
    assert_eq!(loaded.server, "https://blue.test:6443");
    assert_eq!(loaded.files, [setup.path("config")]);
    assert_eq!(token(&loaded), Some("of-jane"));
    assert_eq!(loaded.config.root_cert, None, "whom the system trusts");
}

#[test]
fn flags_choose_and_replace() {
    let red = Setup::of(TWO)
        .args(|a| a.context = Some("red".into()))
        .load();
    assert_eq!(red.server, "https://red.test:443");
    assert_eq!(red.namespace, "default");
    assert_eq!(red.config.tls_server_name.as_deref(), Some("inner.test"));
    assert_eq!(red.config.auth_info.username.as_deref(), Some("joe"));

    let mixed = Setup::of(TWO)
        .args(|a| {
            a.cluster = Some("red".into());
            a.user = Some("joe".into());
            a.namespace = Some("dev".into());
            a.token = Some("given".into());
            a.impersonate = Some("root".into());
            a.impersonate_groups = vec!["ops".into()];
            a.request_timeout = Some(Duration::from_secs(7));
        })
        .load();
    assert_eq!(mixed.context.as_deref(), Some("blue"));
    assert_eq!(mixed.cluster.as_deref(), Some("red"));
    assert_eq!(mixed.namespace, "dev");
    assert_eq!(mixed.config.default_namespace, "dev");
    assert_eq!(token(&mixed), Some("given"));
    assert_eq!(mixed.config.auth_info.username, None, "a token replaces it");
    let user = &mixed.config.auth_info;
    assert_eq!(user.impersonate.as_deref(), Some("root"));
    assert_eq!(user.impersonate_groups, Some(vec!["ops".to_owned()]));
    assert_eq!(mixed.config.read_timeout, Some(Duration::from_secs(7)));
    let zero = Setup::of(TWO).args(|a| a.request_timeout = Some(Duration::ZERO));
    assert_eq!(zero.load().config.read_timeout, None);

    // `tls-server-name` belongs to the entry's server, and is dropped with it.
    let moved = Setup::of(TWO).args(|a| {
        a.context = Some("red".into());
        a.server = Some("https://10.0.0.1:6443".into());
    });
    let moved = moved.load();
    assert_eq!(moved.server, "https://10.0.0.1:6443");
    assert_eq!(moved.config.tls_server_name, None);
}

#[test]
fn names_of_all_entries() {
    let setup = Setup::of(TWO);
    let names = entry_names(&setup.args, &setup.env()).unwrap();
    assert_eq!(names.contexts, ["blue", "red"]);
    assert_eq!(names.clusters, ["blue", "red"]);
    assert_eq!(names.users, ["jane", "joe"]);
    let broken = Setup::of("{");
    assert!(entry_names(&broken.args, &broken.env()).is_err());
}

#[test]
fn a_server_alone_will_do() {
    let loaded = Setup::empty()
        .args(|a| {
            a.server = Some("https://10.0.0.1".into());
            a.token = Some("given".into());
            a.insecure_skip_tls_verify = true;
        })
        .load();
    assert_eq!((loaded.context, loaded.cluster), (None, None));
    assert_eq!(loaded.server, "https://10.0.0.1:443");
    assert!(loaded.config.accept_invalid_certs);
}

#[test]
fn a_server_without_a_scheme() {
    let plain = Setup::empty().args(|a| a.server = Some("localhost:8080".into()));
    assert_eq!(plain.load().server, "http://localhost:8080");
    let tls = plain.args(|a| a.insecure_skip_tls_verify = true);
    assert_eq!(tls.load().server, "https://localhost:8080");
}

#[test]
fn files_of_a_list_are_merged_and_the_first_wins() {
    let setup = Setup::empty();
    let first = "\
apiVersion: v1
kind: Config
current-context: ''
clusters:
- {name: blue, cluster: {server: 'https://first.test'}}
";
    let paths = [
        setup.path("missing"),
        setup.file("first", first),
        setup.file("second", TWO),
        setup.path("missing-too"),
        // A repeated file changes nothing.
        setup.path("second"),
    ];
    let list = std::env::join_paths(&paths).unwrap();
    let setup = setup.var("KUBECONFIG", list.to_str().unwrap());
    let loaded = setup.load();
    assert_eq!(loaded.server, "https://first.test:443");
    assert_eq!(
        loaded.context.as_deref(),
        Some("blue"),
        "an empty one is none"
    );
    assert_eq!(token(&loaded), Some("of-jane"));
    assert_eq!(loaded.files, paths[1..3]);
    // The flag replaces the list.
    let alone = setup.args(|a| a.kubeconfig = Some(paths[2].clone()));
    assert_eq!(alone.load().server, "https://blue.test:6443");
}

#[test]
fn the_usual_place_and_the_tilde() {
    let setup = Setup::empty();
    setup.file(".kube/config", TWO);
    assert_eq!(setup.load().files, [setup.path(".kube/config")]);
    let tilde = setup.args(|a| a.kubeconfig = Some("~/.kube/config".into()));
    assert_eq!(tilde.load().files, [tilde.path(".kube/config")]);
}

#[test]
fn paths_are_relative_to_their_file() {
    let setup = Setup::of(
        "\
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: 'https://a.test', certificate-authority: pki/ca.crt}}]
users: [{name: u, user: {tokenFile: token}}]
",
    );
    let pem = certificate();
    setup.file("pki/ca.crt", &format!("# two\n{pem}{pem}"));
    setup.file("token", "sesame");
    let config = setup.load().config;
    assert_eq!(config.root_cert.unwrap().len(), 2);
    let token = setup.path("token").to_str().unwrap().to_owned();
    assert_eq!(config.auth_info.token_file, Some(token));
}

#[test]
fn within_a_cluster() {
    let account = |setup: &Setup| {
        setup.file("serviceaccount/token", "sesame");
        setup.file("serviceaccount/ca.crt", &certificate());
        setup.file("serviceaccount/namespace", "shop\n");
    };
    let setup = Setup::empty()
        .var("KUBERNETES_SERVICE_HOST", "fd00::1")
        .var("KUBERNETES_SERVICE_PORT", "443");
    assert!(setup.wrong().starts_with("no kubeconfig found"));
    account(&setup);
    let loaded = setup.load();
    assert_eq!(loaded.server, "https://[fd00::1]:443");
    assert_eq!(loaded.namespace, "shop");
    assert_eq!(loaded.context, None);
    let token = loaded.config.auth_info.token_file.unwrap();
    assert_eq!(PathBuf::from(token), setup.path("serviceaccount/token"));
    assert!(
        loaded.config.root_cert_file.is_some(),
        "read again when rotated"
    );

    // A kubeconfig takes precedence over the service account, and a flag that names one requires it.
    setup.file(".kube/config", TWO);
    assert_eq!(setup.load().server, "https://blue.test:6443");
    let flag = Setup::of("{}")
        .var("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        .var("KUBERNETES_SERVICE_PORT", "443");
    account(&flag);
    assert!(
        flag.wrong().contains("names no cluster, context or user"),
        "{}",
        flag.wrong()
    );
}

#[test]
fn the_proxy() {
    let proxy = |setup: &Setup| setup.load().config.proxy_url.map(|url| url.to_string());
    let blue = || Setup::of(TWO);
    assert_eq!(proxy(&blue()), None);
    let https = || blue().var("HTTPS_PROXY", "http://u:p@proxy.test:3128");
    assert_eq!(proxy(&https()).unwrap(), "http://u:p@proxy.test:3128/");
    let lower = blue().var("https_proxy", "socks5h://proxy.test");
    assert_eq!(proxy(&lower).unwrap(), "socks5h://proxy.test/");
    let bare = blue().var("HTTPS_PROXY", "proxy.test:3128");
    assert_eq!(proxy(&bare).unwrap(), "http://proxy.test:3128/");
    assert_eq!(proxy(&blue().var("HTTP_PROXY", "http://proxy.test")), None);
    assert_eq!(proxy(&blue().var("ALL_PROXY", "http://proxy.test")), None);

    // NO_PROXY applies to the server. kube matches it against the proxy, and an empty entry is an error for it.
    assert_eq!(proxy(&https().var("NO_PROXY", "blue.test")), None);
    assert_eq!(proxy(&https().var("no_proxy", "other,.test:6443,")), None);
    assert!(proxy(&https().var("NO_PROXY", "proxy.test,")).is_some());
    assert!(proxy(&https().var("NO_PROXY", "blue.test:443")).is_some());

    let plain = |server: &str| {
        let server = server.to_owned();
        let setup = Setup::empty().args(|a| a.server = Some(server));
        setup.var("HTTP_PROXY", "http://proxy.test")
    };
    assert!(proxy(&plain("http://blue.test")).is_some());
    assert_eq!(proxy(&plain("http://localhost:8080")), None);
    assert_eq!(proxy(&plain("http://127.0.0.1:8080")), None);
    assert_eq!(proxy(&plain("http://[::1]:8080")), None);

    // The kubeconfig's own proxy takes precedence.
    let own = TWO.replace(
        "server: 'https://blue",
        "proxy-url: 'socks5h://own.test', server: 'https://blue",
    );
    let own = Setup::of(&own)
        .var("HTTPS_PROXY", "http://proxy.test")
        .var("NO_PROXY", "*");
    assert_eq!(proxy(&own).unwrap(), "socks5h://own.test/");
}

#[test]
fn the_hosts_of_all_contexts_and_logins() {
    let plugin = "exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: aws, args: [get, '--url=https://me@sso.test:8443/start?x=https://two.test'], env: [{name: A, value: 'http://three.test'}]}";
    let yaml = TWO
        .replace("token: of-jane", plugin)
        .replace("username: joe", "auth-provider: {name: oidc, config: {idp-issuer-url: 'https://Idp.test/realm'}}, username: joe")
        .replace("https://red.test", "https://[fd00::1]:6443");
    let setup = Setup::of(&yaml);
    setup.file("bin/aws", "");
    let path = setup.path("bin").to_str().unwrap().to_owned();
    assert_eq!(
        setup.var("PATH", &path).load().hosts,
        [
            "blue.test",
            "fd00::1",
            "sso.test",
            "two.test",
            "three.test",
            ".amazonaws.com",
            ".amazonaws.com.cn",
            ".awsapps.com",
            "idp.test"
        ]
    );
}

#[test]
fn a_server_with_a_login() {
    let url = "server: 'https://of%40url:of-url@blue.test:6443/path'";
    let loaded = Setup::of(&TWO.replace("server: 'https://blue.test:6443'", url)).load();
    assert_eq!(loaded.server, "https://blue.test:6443/path");
    assert_eq!(loaded.config.cluster_url, "https://blue.test:6443/path");
    let user = &loaded.config.auth_info;
    assert_eq!(user.username.as_deref(), Some("of@url"));
    assert_eq!(user.password.as_ref().unwrap().expose_secret(), "of-url");
    assert_eq!(token(&loaded), None, "it goes before a token, as in Go");
    for bad in [
        "ftp://of:url@blue.test",
        "https://of:url@blue.test:0",
        "https://of:u rl@a b",
    ] {
        let wrong = Setup::of(TWO).args(|a| a.server = Some(bad.into())).wrong();
        assert!(
            !wrong.contains("of:") && wrong.contains("is no http or https URL"),
            "{wrong}"
        );
    }
}

#[test]
fn data_as_people_paste_it() {
    let pem = certificate();
    let base64 = base64::Engine::encode(
        &base64::prelude::BASE64_STANDARD,
        format!("{pem}-----BEGIN CERTIFICATE-----\nAAAA\n"),
    );
    let (head, tail) = base64.split_at(60);
    let yaml = format!(
        "clusters:\n- name: c\n  cluster:\n    server: https://a.test\n    certificate-authority-data: |\n      {head}\n      {tail}\n"
    );
    let loaded = Setup::of(&yaml)
        .args(|a| a.cluster = Some("c".into()))
        .load();
    assert_eq!(loaded.config.root_cert.unwrap().len(), 1);
}

#[test]
fn the_plugin_is_looked_for() {
    let plugin = |command: &str| {
        let exec = format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: '{command}', installHint: brew install it}}"
        );
        Setup::of(&TWO.replace("token: of-jane", &exec))
    };
    let missing = |setup: &Setup| {
        let error = load(&setup.args, &setup.env()).unwrap_err();
        assert!(matches!(error, KubeconfigError::Plugin { .. }), "{error}");
        error.to_string()
    };
    assert_eq!(
        missing(&plugin("get-token")),
        r#"user "jane": the credential plugin "get-token" of the kubeconfig is not installed or not on PATH: brew install it"#
    );
    let relative = plugin("bin/get-token");
    let path = relative.path("bin/get-token");
    assert!(missing(&relative).contains(path.to_str().unwrap()));
    relative.file("bin/get-token", "");
    relative.load();
    let on_path = plugin("get-token");
    on_path.file("bin/get-token", "");
    let path = on_path.path("bin").to_str().unwrap().to_owned();
    on_path.var("PATH", &path).load();
    for (fields, problem) in [
        ("/v1", "has no interactiveMode"),
        (
            "/v1alpha1, interactiveMode: Never",
            "has another apiVersion",
        ),
    ] {
        let exec =
            format!("exec: {{command: sh, apiVersion: client.authentication.k8s.io{fields}}}");
        let said = Setup::of(&TWO.replace("token: of-jane", &exec)).wrong();
        assert!(said.contains(problem), "{said}");
    }
}
