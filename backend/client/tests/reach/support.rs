//! Fixtures of the tests: certificates, an API server, proxies, and clients made from kubeconfigs.

mod pki;
mod proxies;
mod server;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kube::Client;
use kube::client::Body;
use kubevpn_client::{
    ClientError, Env, KubeconfigArgs, Loaded, Options, Renewal, build, build_renewable, load,
};
use tempfile::TempDir;

pub(crate) use self::pki::{Ca, Identity};
pub(crate) use self::proxies::{Asked, HttpProxy, Relay, SocksProxy};
pub(crate) use self::server::{BOTH, Server, Speaks};

/// The API server's name, which only proxies resolve: RFC 6761 reserves it, so it never exists.
pub(crate) const NAME: &str = "api.kubevpn.test";

/// A kubeconfig in a directory of its own, and what is loaded with it.
pub(crate) struct Setup {
    dir: TempDir,
    /// Lines of the cluster's and the user's entry.
    cluster: Vec<String>,
    user: Vec<String>,
    env: Vec<(OsString, OsString)>,
    pub(crate) args: KubeconfigArgs,
    pub(crate) options: Options,
}

impl Setup {
    /// For a server at this URL.
    pub(crate) fn new(url: impl AsRef<str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            cluster: vec![format!("server: {:?}", url.as_ref())],
            user: Vec::new(),
            env: vec![("PATH".into(), std::env::var_os("PATH").unwrap())],
            args: KubeconfigArgs {
                kubeconfig: Some(dir.path().join("config")),
                ..KubeconfigArgs::default()
            },
            options: Options {
                connect_timeout: Duration::from_secs(20),
                ..Options::new("kubevpn/0.0.0-test")
            },
            dir,
        }
    }

    /// For this server at its address, trusting its CA.
    pub(crate) fn of(server: &Server) -> Self {
        Self::new(server.url()).trusting(&server.ca)
    }

    /// For this server by [`NAME`], which only a proxy finds.
    pub(crate) fn by_name(server: &Server) -> Self {
        Self::new(format!("https://{NAME}:6443")).trusting(&server.ca)
    }

    /// With another server.
    pub(crate) fn server(mut self, url: impl AsRef<str>) -> Self {
        self.cluster[0] = format!("server: {:?}", url.as_ref());
        self
    }

    pub(crate) fn trusting(self, ca: &Ca) -> Self {
        let path = self.dir.path().join("ca.crt");
        std::fs::write(path, ca.pem()).unwrap();
        self.cluster("certificate-authority: ca.crt")
    }

    pub(crate) fn cluster(mut self, line: impl Into<String>) -> Self {
        self.cluster.push(line.into());
        self
    }

    pub(crate) fn proxy(self, url: impl AsRef<str>) -> Self {
        self.cluster(format!("proxy-url: {:?}", url.as_ref()))
    }

    pub(crate) fn user(mut self, line: impl Into<String>) -> Self {
        self.user.push(line.into());
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Writes a file beside the kubeconfig.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn load(&self) -> Loaded {
        let entry = |lines: &[String]| -> String {
            let lines = lines.iter().map(|line| format!("    {line}\n"));
            lines.collect()
        };
        let user = match self.user.as_slice() {
            [] => "    {}\n".to_owned(),
            lines => entry(lines),
        };
        let yaml = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n\
             clusters:\n- name: c\n  cluster:\n{}users:\n- name: u\n  user:\n{user}",
            entry(&self.cluster),
        );
        self.file("config", &yaml);
        load(&self.args, &Env::of(self.env.clone())).expect(&yaml)
    }

    pub(crate) fn build(&self) -> Result<Client, ClientError> {
        build(self.load().config, &self.options)
    }

    pub(crate) fn renewable(&self) -> (Client, Renewal) {
        build_renewable(self.load().config, &self.options).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        self.build().unwrap()
    }
}

pub(crate) fn get(path: &str) -> http::Request<Vec<u8>> {
    http::Request::get(path).body(Vec::new()).unwrap()
}

/// A request to upgrade, as port-forwarding makes it.
pub(crate) fn upgrade(path: &str) -> http::Request<Body> {
    http::Request::post(path)
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(Body::empty())
        .unwrap()
}

/// An address on loopback where nothing listens: it was bound a moment ago.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
