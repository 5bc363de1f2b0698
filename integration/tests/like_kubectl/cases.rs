//! Makes the cases out of the tables of `clusters.rs`, `users.rs` and `files.rs`: a row is one of them, or one for each form.
//!
//! In all texts `URL` is the server's, `ADDRESS` its address and `PORT` its port; `@{NAME}` is the path of a file of the PKI,
//! `@data{NAME}` its contents in base64, `@wrapped{NAME}` the same in lines, both for double quotes, and `@json{NAME}` the contents
//! as in a JSON text. The files of [`FILES`] are beside the kubeconfig.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::clusters::{AUTHORITIES, CLUSTERS, SERVERS, SHOWN};
use super::files::{CONFIGS, ENVIRONMENTS, FLAGS, MANY, WORDS};
use super::pki::{CA, KEYS, Pki, TLS12};
use super::users::{AS, CLIENTS, PLUGINS, SCRIPTS, USERS};

pub(crate) struct Case {
    pub(crate) name: String,
    /// What the server shows.
    pub(crate) server: &'static str,
    /// `config`, `config-1` and so on.
    configs: Vec<String>,
    plugin: Option<String>,
    flags: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

#[rustfmt::skip]
const FILES: [(&str, &str); 7] = [
    ("token", "from-file"),
    ("token-line", "from-file\n"),
    ("token-lines", "from\nfile\n"),
    ("token-blank", " \n"),
    ("token-empty", ""),
    ("token-crlf", "from-file\r\n"),
    ("sub/token", "from-sub"),
];

pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let trusted = "certificate-authority: '@{ca-p256.crt}'";
    for by in KEYS {
        for key in KEYS {
            let cluster = format!("server: 'URL', certificate-authority: '@{{ca-{by}.crt}}'");
            let shown: &str = String::leak(format!("{key}-by-{by}"));
            cases.push(case("keys", shown, shown, &cluster, "token: sesame"));
        }
    }
    for key in KEYS {
        let cluster = format!("server: 'URL', {trusted}");
        let shown: &str = String::leak(format!("{TLS12}{key}-by-p256"));
        cases.push(case("keys", shown, shown, &cluster, "token: sesame"));
    }
    for (name, server, cluster) in SERVERS {
        let cluster = format!("server: 'URL', {cluster}");
        cases.push(case("server", name, server, &cluster, "token: sesame"));
    }
    for shown in SHOWN {
        let cluster = format!("server: 'URL', {trusted}");
        cases.push(case("shown", shown, shown, &cluster, "token: sesame"));
    }
    for by in AUTHORITIES {
        let cluster = format!("server: 'URL', certificate-authority: '@{{{by}.crt}}'");
        let shown: &str = String::leak(format!("by-{by}"));
        cases.push(case("authority", by, shown, &cluster, "token: sesame"));
    }
    for (name, cluster) in CLUSTERS {
        cases.push(case("cluster", name, "good", cluster, "token: sesame"));
    }
    let good = format!("server: 'URL', {trusted}");
    let user = |group, name: &str, user: &str| case(group, name, "good", &good, user);
    for (name, certificate, key) in CLIENTS {
        let files = format!("client-certificate: '@{{{certificate}}}', client-key: '@{{{key}}}'");
        cases.push(user("client/file", name, &files));
        let data = format!(
            "client-certificate-data: @data{{{certificate}}}, client-key-data: @data{{{key}}}"
        );
        cases.push(user("client/data", name, &data));
    }
    for (name, certificate, key) in &CLIENTS[..4] {
        let data = format!(
            "client-certificate-data: \"@wrapped{{{certificate}}}\", client-key-data: \"@wrapped{{{key}}}\""
        );
        cases.push(user("client/wrapped", name, &data));
    }
    for (name, entry) in USERS {
        cases.push(user("user", name, entry));
    }
    for (name, entry, flags) in AS {
        let entry = format!("token: sesame, {entry}");
        cases.push(user("as", name, &entry).with(flags, &[]));
    }
    for (name, more, status) in PLUGINS {
        let entry = format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, command: ./plugin, interactiveMode: Never{more}}}"
        );
        let script = format!("status '{status}'");
        cases.push(user("plugin", name, &entry).running(&script));
    }
    for (name, entry, script) in SCRIPTS {
        cases.push(user("script", name, entry).running(script));
    }
    let whole = |group, name: &str, texts: &[&str]| Case {
        configs: texts.iter().map(|text| spelt_out(text)).collect(),
        ..case(group, name, "good", "", "")
    };
    for (name, texts) in CONFIGS {
        cases.push(whole("files", name, texts));
    }
    for (name, flags) in FLAGS {
        cases.push(whole("flags", name, &[MANY]).with(flags, &[]).running("ok"));
    }
    for (name, env, flags) in ENVIRONMENTS {
        cases.push(
            whole("environment", name, &[MANY])
                .with(flags, env)
                .running("ok"),
        );
    }
    cases
}

fn case(group: &str, name: &str, server: &'static str, cluster: &str, user: &str) -> Case {
    debug_assert!(CA == "ca-p256", "whose file the tables name");
    Case {
        name: format!("{group}/{name}"),
        server,
        configs: vec![format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        )],
        plugin: None,
        flags: &[],
        env: &[],
    }
}

impl Case {
    fn with(
        mut self,
        flags: &'static [&'static str],
        env: &'static [(&'static str, &'static str)],
    ) -> Self {
        (self.flags, self.env) = (flags, env);
        self
    }

    fn running(mut self, script: &str) -> Self {
        let credential = |version: &str| {
            format!(
                r#"printf '%s' '{{"apiVersion":"client.authentication.k8s.io/{version}","kind":"ExecCredential","status":'"$1"'}}'"#
            )
        };
        self.plugin = Some(format!(
            "#!/bin/sh\nstatus() {{ {}; }}\nok() {{ status '{{\"token\":\"of-plugin\"}}'; }}\n\
             of() {{ ok | sed s,k8s.io/v1,k8s.io/$1,; }}\nbeta() {{ of v1beta1; }}\nalpha() {{ of v1alpha1; }}\n{script}\n",
            credential("v1")
        ));
        self
    }

    /// Makes the directory it runs in.
    pub(crate) fn write(&self, dir: &Path, pki: &Pki, server: SocketAddr) {
        for sub in ["sub", "home", "other-home/.kube"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        for (name, text) in FILES {
            write(name, text);
        }
        for (n, text) in self.configs.iter().enumerate() {
            let text = filled(text, pki, server);
            write(&config(n), &text);
            if n == 0 {
                write(
                    "other-home/.kube/config",
                    &text.replace("./plugin", "../../plugin"),
                );
            }
        }
        if let Some(script) = &self.plugin {
            write("plugin", &filled(script, pki, server));
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(dir.join("plugin"), mode).unwrap();
        }
    }

    pub(crate) fn args(&self, pki: &Pki, server: SocketAddr) -> Vec<String> {
        let flags = self.flags.iter();
        flags.map(|flag| filled(flag, pki, server)).collect()
    }

    /// What is different from the usual environment.
    pub(crate) fn env(&self, dir: &Path) -> Vec<(String, String)> {
        let dir = dir.to_str().unwrap();
        let files: Vec<_> = (0..self.configs.len())
            .map(|n| format!("{dir}/{}", config(n)))
            .collect();
        let mut env = vec![("KUBECONFIG".to_owned(), files.join(":"))];
        let told = self.env.iter();
        env.extend(told.map(|(name, value)| (name.to_string(), value.replace("DIR", dir))));
        env
    }
}

fn spelt_out(text: &str) -> String {
    let replaced = |text: String, (word, by): &(&str, &str)| text.replace(word, by);
    WORDS.iter().fold(text.to_owned(), replaced)
}

fn config(n: usize) -> String {
    match n {
        0 => "config".to_owned(),
        n => format!("config-{n}"),
    }
}

/// The text with what stands for other things.
fn filled(text: &str, pki: &Pki, server: SocketAddr) -> String {
    let address = server.to_string();
    let text = text
        .replace("URL", &format!("https://{address}"))
        .replace("ADDRESS", &address)
        .replace("PORT", &server.port().to_string());
    let mut filled = String::new();
    let mut rest = &*text;
    while let Some((before, after)) = rest.split_once('@') {
        filled.push_str(before);
        let marked = after
            .split_once('{')
            .filter(|(kind, _)| ["", "data", "wrapped", "spaced", "json"].contains(kind));
        let Some((kind, (name, after))) =
            marked.and_then(|(kind, rest)| Some((kind, rest.split_once('}')?)))
        else {
            filled.push('@');
            rest = after;
            continue;
        };
        rest = after;
        let base64 = |between: &str| {
            let text = BASE64_STANDARD.encode(pki.read(name));
            let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
            lines
                .map(|line| format!("{line}{between}"))
                .collect::<String>()
        };
        filled.push_str(&match kind {
            "data" => base64(""),
            "wrapped" => base64(r"\n"),
            "spaced" => base64(" "),
            "json" => String::from_utf8(pki.read(name))
                .unwrap()
                .replace('\n', r"\n"),
            _ => pki.path(name).display().to_string(),
        });
    }
    filled.push_str(rest);
    filled
}
