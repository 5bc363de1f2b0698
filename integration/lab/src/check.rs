//! Is the cluster a real one? One claim a line, each about something the tests build on.

use std::fmt;
use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::Lab;
use crate::command::{FOR_CHECK, command, output, output_of_input, require};
use crate::process::until;

/// One claim, and what was found instead if it does not hold.
#[derive(Debug)]
pub struct Claim {
    /// In a few words.
    pub what: &'static str,
    /// The answer that contradicts it.
    pub contradiction: Option<String>,
}

/// kubectl forwarding a port, for as long as this lives.
pub(crate) struct KubectlForward {
    pub(crate) port: u16,
    _kubectl: Child,
    /// It writes a line per connection, and ends if nobody could read it.
    _lines: BufReader<ChildStdout>,
}

impl KubectlForward {
    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

pub(crate) struct CheckClaims<F> {
    pub(crate) report: F,
    pub(crate) all: Vec<Claim>,
}

impl<F: FnMut(&Claim)> CheckClaims<F> {
    pub(crate) async fn claim(
        &mut self,
        what: &'static str,
        got: impl Future<Output = Result<String>>,
        holds: impl FnOnce(&str) -> bool,
    ) {
        let trimmed = async { Ok(got.await?.trim().to_owned()) };
        self.claim_of(what, trimmed, |answer| holds(answer)).await;
    }

    /// Of whatever was found.
    pub(crate) async fn claim_of<T: fmt::Debug>(
        &mut self,
        what: &'static str,
        got: impl Future<Output = Result<T>>,
        holds: impl FnOnce(&T) -> bool,
    ) {
        let contradiction = match got.await {
            Ok(answer) if holds(&answer) => None,
            Ok(answer) => Some(format!(
                "got {}",
                format!("{answer:?}").chars().take(600).collect::<String>()
            )),
            Err(error) => Some(format!("{error:#}")),
        };
        let claim = Claim {
            what,
            contradiction,
        };
        (self.report)(&claim);
        self.all.push(claim);
    }
}

impl Lab {
    /// Checks them all; each is reported as soon as it is known. A pod of `reviews` is deleted on the way.
    ///
    /// # Errors
    /// No cluster to ask, or a program missing that asks it.
    pub async fn check(&self, report: impl FnMut(&Claim)) -> Result<Vec<Claim>> {
        require(&FOR_CHECK)?;
        let product = self.forward(&["deployment/productpage"], 9080).await?;
        let reviews = self.forward(&["service/reviews"], 80).await?;
        let multi = self.forward(&["deployment/multi"], 2525).await?;
        let dns = self
            .forward(&["--namespace", "kube-system", "deployment/coredns"], 53)
            .await?;
        let db = self.pod_ip("db-0").await?;
        let service = self
            .kubectl(&[
                "get",
                "service",
                "productpage",
                "-o",
                "jsonpath={.spec.clusterIP}",
            ])
            .await?;
        let pod_net = self.settings.pod_net();
        let pod_prefix = pod_net.trim_end_matches("0/24");
        let service_v6 = self.settings.service_nets()[1].replace("::/112", "::");

        let mut c = CheckClaims {
            report,
            all: Vec::new(),
        };
        c.claim(
            "all pods run",
            self.kubectl(&[
                "get",
                "pods",
                "-A",
                "-o",
                "jsonpath={.items[*].status.phase}",
            ]),
            |phases| phases.split(' ').all(|phase| phase == "Running"),
        )
        .await;
        c.claim(
            "pods have their own addresses",
            async { Ok(db.clone()) },
            |ip| ip.starts_with(pod_prefix),
        )
        .await;
        c.claim(
            "pods cannot be reached from the host",
            self.no_route(&db),
            |answer| answer == "no route",
        )
        .await;
        c.claim(
            "port-forward to a Deployment",
            curl(&[&product.url("/")]),
            |body| body.contains(r#""service":"productpage""#),
        )
        .await;
        c.claim(
            "port-forward to a Service with a named target port",
            curl(&[&reviews.url("/")]),
            |body| body.contains(r#""service":"reviews""#),
        )
        .await;
        let size = [
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{size_download}",
            &product.url("/bytes?n=100000000"),
        ];
        c.claim("100 MB down", curl(&size), |sizes| sizes == "200 100000000")
            .await;
        c.claim("20 MB up", upload(&product, 20_000_000), |size| {
            size == "20000000"
        })
        .await;
        c.claim(
            "a server that speaks first",
            first_line(multi.port),
            |line| line.starts_with("220 multi"),
        )
        .await;
        c.claim(
            "exec",
            self.kubectl(&[
                "exec",
                "deployment/productpage",
                "--",
                "/cat",
                "/etc/resolv.conf",
            ]),
            |text| text.contains("svc.cluster.local"),
        )
        .await;
        c.claim(
            "logs",
            self.kubectl(&["logs", "deployment/productpage"]),
            |text| text.contains("echo productpage"),
        )
        .await;
        c.claim(
            "DNS over TCP: a Service",
            ask(&dns, &["productpage.default.svc.cluster.local"]),
            |ip| ip == service,
        )
        .await;
        c.claim(
            "DNS over TCP: a pod of a StatefulSet",
            ask(&dns, &["db-0.db.default.svc.cluster.local"]),
            |ip| ip == db,
        )
        .await;
        c.claim(
            "DNS over TCP: an ExternalName",
            ask(&dns, &["external.default.svc.cluster.local"]),
            |answer| answer.lines().next() == Some("outside.example.test."),
        )
        .await;
        c.claim(
            "DNS over TCP: SRV",
            ask(&dns, &["SRV", "_http._tcp.multi.default.svc.cluster.local"]),
            |answer| answer.contains(" 80 multi.default.svc"),
        )
        .await;
        c.claim(
            "DNS over TCP: an IPv6 ClusterIP",
            ask(&dns, &["AAAA", "dual.default.svc.cluster.local"]),
            |ip| ip.starts_with(&service_v6),
        )
        .await;
        let slices = [
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=notready",
            "-o",
        ];
        let ready = [
            &slices[..],
            &["jsonpath={.items[0].endpoints[*].conditions.ready}"],
        ]
        .concat();
        c.claim(
            "a Service without a ready endpoint",
            self.kubectl(&ready),
            |ready| ready == "false",
        )
        .await;
        c.claim("a deleted pod is replaced", self.replace_reviews(), |pod| {
            pod.starts_with("reviews-")
        })
        .await;
        Ok(c.all)
    }

    async fn pod_ip(&self, pod: &str) -> Result<String> {
        self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
            .await
    }

    pub(crate) async fn forward(&self, what: &[&str], port: u16) -> Result<KubectlForward> {
        let port = format!(":{port}");
        let args = [&["port-forward", "--address", "127.0.0.1"], what, &[&port]].concat();
        let mut kubectl = self
            .kubectl_command(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut lines = BufReader::new(kubectl.stdout.take().context("no standard output")?);
        let mut line = String::new();
        timeout(Duration::from_secs(30), lines.read_line(&mut line))
            .await
            .context("kubectl port-forward is slow")??;
        // Forwarding from 127.0.0.1:40123 -> 9080
        let local = line
            .strip_prefix("Forwarding from 127.0.0.1:")
            .and_then(|rest| rest.split(' ').next());
        let port = local.and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("kubectl port-forward {what:?} said {line:?}"))?;
        Ok(KubectlForward {
            port,
            _kubectl: kubectl,
            _lines: lines,
        })
    }

    async fn no_route(&self, ip: &str) -> Result<String> {
        match timeout(Duration::from_secs(3), TcpStream::connect((ip, 9080))).await {
            Ok(Ok(_)) => Ok("connected".to_owned()),
            Ok(Err(error)) if error.kind() == ErrorKind::HostUnreachable => {
                Ok("no route".to_owned())
            }
            Ok(Err(error)) => Ok(error.to_string()),
            Err(_) => Ok("no answer".to_owned()),
        }
    }

    async fn replace_reviews(&self) -> Result<String> {
        let names = [
            "get",
            "pods",
            "-l",
            "app=reviews",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ];
        let old = self.kubectl(&names).await?;
        let old: Vec<&str> = old.split_whitespace().collect();
        self.kubectl(&[&["delete", "pod"], &old[..]].concat())
            .await?;
        let ready = [
            "get",
            "pods",
            "-l",
            "app=reviews",
            "-o",
            "jsonpath={range .items[?(@.status.containerStatuses[0].ready==true)]}{.metadata.name}{\"\\n\"}{end}",
        ];
        until(Duration::from_secs(30), "a new pod", async || {
            let pods = self.kubectl(&ready).await?;
            Ok(pods
                .lines()
                .find(|pod| !old.contains(pod))
                .map(str::to_owned))
        })
        .await
    }
}

async fn curl(args: &[&str]) -> Result<String> {
    output(
        command("curl")?
            .args(["-sS", "--noproxy", "*", "--max-time", "60"])
            .args(args),
    )
    .await
}

async fn upload(to: &KubectlForward, bytes: usize) -> Result<String> {
    let mut curl = command("curl")?;
    curl.args([
        "-sS",
        "--noproxy",
        "*",
        "--max-time",
        "60",
        "-T",
        "-",
        &to.url("/sink"),
    ]);
    output_of_input(&mut curl, &"x".repeat(bytes)).await
}

async fn first_line(port: u16) -> Result<String> {
    let mut lines = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    let mut line = String::new();
    let n = timeout(Duration::from_secs(10), lines.read_line(&mut line))
        .await
        .context("no line came")??;
    ensure!(n > 0, "the connection ended without a line");
    Ok(line)
}

async fn ask(dns: &KubectlForward, question: &[&str]) -> Result<String> {
    let port = dns.port.to_string();
    let mut dig = command("dig")?;
    output(
        dig.args([
            "+tcp",
            "+short",
            "+time=5",
            "+tries=1",
            "@127.0.0.1",
            "-p",
            &port,
        ])
        .args(question),
    )
    .await
}
