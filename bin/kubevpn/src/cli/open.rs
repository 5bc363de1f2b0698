//! `kubevpn open`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubevpn_client::{Env, KubeconfigArgs, load};
use kubevpn_proxy::{self as proxy, Backend, ClusterStack, Server, own};
use kubevpn_target::{Host, Refusal};
use rustix::process::geteuid;
use tokio::process::Command;

use super::at::ProxyAddresses;
use super::kube::{KubeArgs, TOKEN};
use super::listen::AUTH;
use super::policy::PolicyArgs;
use super::reach::{answers, reach};
use super::serve::{result, termination};
use super::suggest::advised;
use super::{habits, service, snippet};
use crate::exit::Failure;
use crate::notify::NOTIFY_SOCKET;
use crate::out;

/// Open a page of a Service in a browser with a profile of its own
///
/// The browser gets a temporary proxy into the cluster and a temporary profile; both are deleted when it is closed. Your
/// own profile is not used. The first of $BROWSER, Chromium, Chrome, Edge, Brave and Firefox that is installed is started.
/// Without a port the Service's HTTP port is opened.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # the page of a Service
  kubevpn open productpage

  # a page of another namespace
  kubevpn open grafana.monitoring:3000/dashboards

  # print the rendered page, for a script
  kubevpn open productpage -- --headless --dump-dom")]
pub(crate) struct OpenCommand {
    /// Service to open, optionally with a port and a path
    #[arg(value_name = "SERVICE[:PORT][/PATH]")]
    page: String,
    /// Further arguments of the browser
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// Family of a browser, which decides its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BrowserFamily {
    Chromium,
    Firefox,
}

const BROWSERS: [&str; 11] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "brave-browser",
    "firefox",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Firefox.app/Contents/MacOS/firefox",
];

impl BrowserFamily {
    /// The family for the name of a program; `None` if its flags are not known.
    fn of(program: &Path) -> Option<Self> {
        let name = program.file_name()?.to_str()?.to_ascii_lowercase();
        let is = |words: &[&str]| words.iter().any(|word| name.contains(word));
        match () {
            () if is(&["firefox"]) => Some(Self::Firefox),
            () if is(&["chrom", "edge", "brave"]) => Some(Self::Chromium),
            () => None,
        }
    }

    /// Arguments for a separate profile with this proxy.
    fn arguments(self, profile: &Path, proxy: &ProxyAddresses, url: &str) -> Vec<OsString> {
        let profile = profile.as_os_str();
        let mut arguments = Vec::new();
        match self {
            Self::Chromium => {
                let mut directory = OsString::from("--user-data-dir=");
                directory.push(profile);
                arguments.push(directory);
                if let Some(http) = proxy.http {
                    arguments.push(format!("--proxy-server=http://{http}").into());
                }
                let quiet = [
                    "--no-first-run",
                    "--no-default-browser-check",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                ];
                arguments.extend(quiet.map(OsString::from));
            }
            Self::Firefox => {
                arguments.extend(["--new-instance", "--profile"].map(OsString::from));
                arguments.push(profile.to_owned());
            }
        }
        arguments.push(url.into());
        arguments
    }

    /// Advice after the browser has failed. Only Chromium as root needs to run without its sandbox.
    fn advice(self, is_root: bool) -> &'static str {
        match self {
            Self::Chromium if is_root => {
                "as root it does not start with its sandbox: run this as another user, or add -- --no-sandbox"
            }
            Self::Chromium | Self::Firefox => {
                "set BROWSER to name another, or give it a flag after --"
            }
        }
    }
}

/// The requested page.
#[derive(Debug, PartialEq, Eq)]
struct RequestedPage {
    scheme: &'static str,
    /// `HOST` or `HOST:PORT`.
    authority: String,
    path: String,
}

impl RequestedPage {
    /// Parses the argument, whose host may be `svc/NAME`, or `pod/NAME` in this namespace.
    fn parse(text: &str, namespace: &str) -> Result<Self, Failure> {
        if let Some((kind, rest)) = text.split_once('/') {
            match kind {
                "pod" | "pods" | "po" => {
                    let end = rest.find([':', '/']).unwrap_or(rest.len());
                    let (name, rest) = rest.split_at(end);
                    return Self::parse(&format!("http://{name}.{namespace}.pod{rest}"), namespace);
                }
                "deploy" | "deployment" | "deployments" | "sts" | "statefulset"
                | "statefulsets" => {
                    return habits::target(text, namespace)
                        .and(Err(Failure::value(format!("{text}: name a Service"))));
                }
                _ => {}
            }
        }
        let (scheme, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => ("http", rest),
            (_, Some(rest)) => ("https", rest),
            _ => (
                "http",
                text.trim_start_matches("svc/")
                    .trim_start_matches("services/")
                    .trim_start_matches("service/"),
            ),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.split(':').next().unwrap_or_default();
        Host::parse(host).map_err(|error| Failure::value(format!("{text}: {error}")))?;
        Ok(Self {
            scheme,
            authority: authority.to_owned(),
            path: if path.is_empty() { "/" } else { path }.to_owned(),
        })
    }

    fn url(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority, self.path)
    }

    /// Adds the HTTP port of the Service, if the page has no port.
    async fn at_its_port(self, client: &kube::Client, namespace: &str) -> Self {
        if self.authority.contains(':') || self.scheme != "http" {
            return self;
        }
        let mut labels = self.authority.split('.');
        let name = labels.next().unwrap_or_default();
        let namespace = labels.next().unwrap_or(namespace);
        match service::port_of_http(client, namespace, name).await {
            Some(port) if port != 80 => Self {
                authority: format!("{}:{port}", self.authority),
                ..self
            },
            _ => self,
        }
    }
}

impl RequestedPage {
    /// Checks the target, because the browser would show an error page and exit with 0. A Service that is not ready is
    /// accepted: it may become ready.
    async fn is_there(
        &self,
        connect: &ClusterStack,
        client: &kube::Client,
        namespace: &str,
    ) -> Result<(), Failure> {
        let (host, port) = habits::target(&self.url(), namespace)?;
        let Err(error) = connect.get_ref().resolve(&host, port).await else {
            return Ok(());
        };
        match error.refusal() {
            Refusal::NameNotFound | Refusal::NoSuchPort | Refusal::Denied => {
                Err(advised(error, client, namespace, &host).await)
            }
            _ => Ok(()),
        }
    }
}

/// `$BROWSER`, else the first that is on `PATH`.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find = |program: &Path| match program.is_absolute() {
        true => program.is_file().then(|| program.to_owned()),
        false => std::env::split_paths(&path)
            .map(|dir| dir.join(program))
            .find(|file| file.is_file()),
    };
    let own = std::env::var_os("BROWSER").unwrap_or_default();
    let own: Vec<_> = std::env::split_paths(&own).collect();
    let all = own
        .iter()
        .map(PathBuf::as_path)
        .chain(BROWSERS.map(Path::new));
    all.filter(|program| BrowserFamily::of(program).is_some())
        .find_map(find)
}

impl OpenCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        // The arguments are checked before anything is read.
        RequestedPage::parse(&self.page, "default")?;
        let policy = self.policy.policy()?;
        let loaded = load(&KubeconfigArgs::from(self.kube), &Env::of_process())?;
        let page = RequestedPage::parse(&self.page, &loaded.namespace)?;
        let mut termination = termination()?;
        let listening = own(None).await?;
        let addresses = listening.addresses();
        let own = addresses.iter().copied().collect();
        let config = policy.stack(&loaded.namespace, own);
        let (client, api_server) = reach(loaded.config).await?;
        answers(&client, &loaded.server).await?;
        let page = page.at_its_port(&client, &loaded.namespace).await;
        let connect = proxy::connect(client.clone(), api_server, config);
        page.is_there(&connect, &client, &loaded.namespace).await?;
        let url = page.url();
        let proxy = ProxyAddresses {
            http: addresses.first().copied(),
            socks: addresses.last().copied(),
            login: None,
        };
        let mut server = Server::new(Backend::of_cluster(connect), listening.clients);
        listening
            .bound
            .into_iter()
            .for_each(|bound| server.add(bound));
        let profile = tempfile::Builder::new()
            .prefix("kubevpn-browser-")
            .tempdir()
            .map_err(|error| {
                anyhow::Error::from(error).context("cannot make a profile for the browser")
            })?;
        let found = browser().and_then(|program| Some((BrowserFamily::of(&program)?, program)));
        let ended = match found {
            None => {
                let http = addresses
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                out::line(format_args!(
                    "No browser was found. Paste, until Ctrl-C: BROWSER --proxy-server=http://{http} {url}"
                ))?;
                result(termination.next().await)
            }
            Some((kind, program)) => {
                if kind == BrowserFamily::Firefox {
                    let preferences = snippet::firefox(&proxy);
                    std::fs::write(profile.path().join("user.js"), preferences)
                        .map_err(anyhow::Error::from)?;
                }
                let mut child = Command::new(&program)
                    .env_remove(AUTH)
                    .env_remove(TOKEN)
                    .env_remove(NOTIFY_SOCKET)
                    .args(kind.arguments(profile.path(), &proxy, &url))
                    .args(&self.arguments)
                    .kill_on_drop(true)
                    .spawn()
                    .map_err(|source| Failure::NotRun {
                        command: program.display().to_string(),
                        source,
                    })?;
                tokio::select! {
                    ended = child.wait() => match ended.map_err(anyhow::Error::from)?.code() {
                        Some(0) => Ok(()),
                        code => {
                            if !out::is_hushed() {
                                out::aside(format_args!(
                                    "{} has failed: {}",
                                    out::escaped(&program.to_string_lossy()),
                                    kind.advice(geteuid().is_root())
                                ));
                            }
                            Err(Failure::Ended(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
                        }
                    },
                    signal = termination.next() => {
                        // A typed signal has reached the browser, too; its other processes are killed.
                        child.kill().await.map_err(anyhow::Error::from)?;
                        result(signal)
                    }
                }
            }
        };
        server.end(Duration::ZERO, std::future::pending()).await;
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        for (text, url) in [
            ("productpage", "http://productpage/"),
            ("svc/productpage", "http://productpage/"),
            ("services/productpage", "http://productpage/"),
            (
                "grafana.monitoring:3000/d?x=1",
                "http://grafana.monitoring:3000/d?x=1",
            ),
            ("https://api.shop/", "https://api.shop/"),
            ("pod/web-0:8080/x", "http://web-0.shop.pod:8080/x"),
        ] {
            assert_eq!(RequestedPage::parse(text, "shop").unwrap().url(), url);
        }
        for bad in ["a b", "", "deploy/web", "pod/"] {
            assert!(RequestedPage::parse(bad, "shop").is_err(), "{bad}");
        }
    }

    #[test]
    fn the_sandbox_is_given_up_only_where_it_cannot_be() {
        for (kind, is_root, named) in [
            (BrowserFamily::Chromium, true, true),
            (BrowserFamily::Chromium, false, false),
            (BrowserFamily::Firefox, true, false),
            (BrowserFamily::Firefox, false, false),
        ] {
            let advice = kind.advice(is_root);
            assert_eq!(advice.contains("--no-sandbox"), named, "{advice}");
        }
    }

    #[test]
    fn flags_of_each_kind() {
        assert_eq!(
            BrowserFamily::of(Path::new("/usr/bin/google-chrome")),
            Some(BrowserFamily::Chromium)
        );
        assert_eq!(
            BrowserFamily::of(Path::new("firefox-esr")),
            Some(BrowserFamily::Firefox)
        );
        assert_eq!(BrowserFamily::of(Path::new("lynx")), None);
        let proxy = ProxyAddresses {
            http: "127.0.0.1:3128".parse().ok(),
            ..ProxyAddresses::default()
        };
        let arguments =
            BrowserFamily::Chromium.arguments(Path::new("/tmp/x"), &proxy, "http://web/");
        let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
        assert!(has("--user-data-dir=/tmp/x") && has("--proxy-server=http://127.0.0.1:3128"));
        assert_eq!(arguments.last().unwrap(), "http://web/");
    }
}
