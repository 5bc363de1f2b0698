//! `deploy/gateway` as a team runs it: applied by a user with rights in one namespace, and under load while replicas are
//! killed, replaced and evicted, and the Secrets changed.
//!
//! The lab has no kube-proxy. The clients (`load`) run in the node's network and do what its rules do: for each connection a
//! Pod by chance among the ready endpoints of the Service, or the terminating ones that still serve, as the EndpointSlices
//! were a second ago. The address of the Service `kubernetes`, where a Pod looks for the API server, leads there for as long as
//! this runs. The lab's CNI plugin enforces no NetworkPolicy, and no metrics server gives the HorizontalPodAutoscaler numbers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::info;

use self::load::{
    GatewayLoad, LoadEndpoint, LoadKind, Person, RequestTally, first_line, head, in_network,
    joined, open_ports,
};
use crate::Lab;
use crate::check::{CheckClaims, Claim};
use crate::command::{output, output_of_input};
use crate::guests::add_libraries;
use crate::interrupt::undone;
use crate::process::until;

mod load;

/// What `deploy/gateway` calls everything, and where it puts it.
const NAME: &str = "kubevpn-gateway";
const NAMESPACE: &str = "kubevpn-gateway";
const PORT: u16 = 8443;
const ADMIN: u16 = 9090;
/// The image it asks for.
const IMAGE: &str = "docker.io/library/kubevpn:0.1.0";

/// Upper bound on anything that is waited for: a Pod that ends takes up to 60 s.
const LIMIT: Duration = Duration::from_secs(120);
/// How far the rules of a kube-proxy are behind the EndpointSlices.
const LAG: Duration = Duration::from_secs(1);
/// As many requests make a phase in which nothing happens.
const ENOUGH: usize = 60;

/// Behind the gateway, by the rules that the namespace enforces.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: echo
        image: lab.local/echo:1
        imagePullPolicy: Never
        env: [{name: NAME, value: web}, {name: PORTS, value: "8080"}, {name: STREAM_PORTS, value: "7007"}]
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 2}
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 8080}, {name: stream, port: 7007}]
"#;

/// What the Secrets hold.
struct Secrets {
    users: &'static str,
    certificate: String,
    key: String,
}

impl Secrets {
    fn new(users: &'static str) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([format!("{NAME}.{NAMESPACE}.svc")])?;
        Ok(Self {
            users,
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        })
    }

    fn manifest(&self) -> String {
        let users = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{NAME}-users")},
            "stringData": {"users": self.users},
        });
        let tls = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{NAME}-tls")},
            "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": self.certificate, "tls.key": self.key},
        });
        format!("{users}\n---\n{tls}\n")
    }
}

/// kubectl as somebody, in the gateway's namespace.
struct Team<'a> {
    lab: &'a Lab,
    kubeconfig: PathBuf,
}

impl Team<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.lab.settings.path("bin/kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.args(["--namespace", NAMESPACE]).args(args);
        command.kill_on_drop(true);
        command
    }

    async fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args)).await
    }

    async fn apply(&self, manifest: &str) -> Result<String> {
        output_of_input(&mut self.command(&["apply", "-f", "-"]), manifest).await
    }

    /// The Pods of the gateway: name, and how often it was restarted.
    async fn pods(&self) -> Result<BTreeMap<String, u64>> {
        let selector = format!("app.kubernetes.io/name={NAME}");
        let list = self
            .kubectl(&["get", "pods", "-l", &selector, "-o", "json"])
            .await?;
        let list: Value = serde_json::from_str(&list)?;
        let items = list["items"].as_array().into_iter().flatten();
        let pods = items.map(|pod| {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            (name.to_owned(), restarts.as_u64().unwrap_or_default())
        });
        Ok(pods.collect())
    }
}

impl Lab {
    /// Checks what docs/gateway.md says of the gateway; each claim is reported as soon as it is known. Takes about two
    /// minutes, and makes and deletes the namespace `kubevpn-gateway`.
    ///
    /// # Errors
    /// No cluster; what is waited for in vain.
    pub async fn gateway(&self, kubevpn: &Path, report: impl FnMut(&Claim)) -> Result<Vec<Claim>> {
        self.bring_image(kubevpn).await?;
        let mut claims = CheckClaims {
            report,
            all: Vec::new(),
        };
        let checked = async {
            let _api = self.serve_api_address().await?;
            self.make_namespace().await?;
            self.check_gateway(&mut claims).await
        };
        undone(checked, self.remove_gateway()).await?;
        Ok(claims.all)
    }

    /// Removes the namespace, and the address that [`serve_api_address`](Self::serve_api_address) added.
    async fn remove_gateway(&self) -> Result<()> {
        let namespace = ["delete", "namespace", NAMESPACE];
        let flags = ["--ignore-not-found", "--wait=false"];
        let removed = self.kubectl(&[&namespace[..], &flags].concat()).await;
        let address = format!("{}/32", self.settings.api_service_ip());
        output(&mut self.enter(["ip", "addr", "del", &address, "dev", "lo"])?).await?;
        removed.map(drop)
    }

    /// The image that the Deployment names, made of a program and what it loads.
    async fn bring_image(&self, kubevpn: &Path) -> Result<()> {
        ensure!(
            kubevpn.is_file(),
            "{} is not there: cargo build -p kubevpn",
            kubevpn.display()
        );
        let mut files = vec![("kubevpn".to_owned(), kubevpn.to_owned())];
        add_libraries(&mut files, &self.packages()).await?;
        let archive = self.settings.path("run/gateway.tar");
        let mut tool = self.hyperkube(&["image", &archive, IMAGE, "/kubevpn"]);
        for (path, file) in files {
            tool.arg(format!("{path}={}", file.display()));
        }
        output(&mut tool).await?;
        let import = ["ctr", "--namespace", "k8s.io", "images", "import"];
        output(self.enter(import)?.arg(&archive)).await?;
        std::fs::remove_file(&archive)?;
        info!("image in");
        Ok(())
    }

    /// What kube-proxy would do for the Service `kubernetes`, until the child ends.
    async fn serve_api_address(&self) -> Result<Child> {
        let s = &self.settings;
        let ip = s.api_service_ip();
        let address = format!("{ip}/32");
        output(&mut self.enter(["ip", "addr", "replace", &address, "dev", "lo"])?).await?;
        let network = self.network()?.display().to_string();
        let (from, to) = (format!("{ip}:443"), format!("127.0.0.1:{}", s.api_port()));
        Ok(self.hyperkube(&["relay", &network, &from, &to]).spawn()?)
    }

    /// The node's, as a file.
    fn network(&self) -> Result<PathBuf> {
        let node = self.node()?.context("the node is not up")?;
        Ok(format!("/proc/{}/ns/net", node.pid()).into())
    }

    async fn make_namespace(&self) -> Result<()> {
        // Of an earlier run; nobody uses its Pods.
        let pods = [
            "delete",
            "pods",
            "--all",
            "--namespace",
            NAMESPACE,
            "--grace-period=1",
        ];
        self.kubectl(&pods).await?;
        self.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found"])
            .await?;
        let namespace = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    \
             pod-security.kubernetes.io/enforce: restricted\n"
        );
        output_of_input(&mut self.kubectl_command(&["apply", "-f", "-"]), &namespace).await?;
        let binding = ["create", "rolebinding", "team", "--namespace", NAMESPACE];
        self.kubectl(&[&binding[..], &["--clusterrole=admin", "--user=team"]].concat())
            .await?;
        Ok(())
    }

    async fn check_gateway(&self, c: &mut CheckClaims<impl FnMut(&Claim)>) -> Result<()> {
        let team = Team {
            lab: self,
            kubeconfig: self.user("team").await?,
        };
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/gateway");
        let first = Secrets::new("ann:first:secret\nbob:second\n")?;
        team.apply(WEB).await?;
        team.apply(&first.manifest()).await?;

        // === who runs it, and by which rules ===

        c.claim(
            "kubectl apply -k deploy/gateway, by a user with rights in one namespace",
            team.kubectl(&["apply", "-k", folder]),
            |said| said.lines().count() == 8 && said.lines().all(|line| line.ends_with("created")),
        )
        .await;
        let elsewhere = async {
            // kubectl says no with exit code 1.
            let mut can =
                team.command(&["auth", "can-i", "list", "pods", "--namespace", "default"]);
            Ok(String::from_utf8_lossy(&can.output().await?.stdout).into_owned())
        };
        c.claim("that user has no rights elsewhere", elsewhere, |can| {
            can == "no"
        })
        .await;
        let endpoints = self.gateway_endpoints()?;
        two(&endpoints.1, &[]).await?;
        info!("two replicas ready");
        let pods = team.pods().await?;
        c.claim(
            "the HorizontalPodAutoscaler holds two replicas",
            team.kubectl(&[
                "get",
                "hpa",
                NAME,
                "-o",
                "jsonpath={.spec.minReplicas} {.status.desiredReplicas} {.status.conditions[?(@.type==\"AbleToScale\")].status}",
            ]),
            |hpa| hpa == "2 2 True",
        )
        .await;
        let privileged = async {
            let mut run = team.command(&[
                "run",
                "privileged",
                "--image=lab.local/echo:1",
                "--privileged",
            ]);
            Ok(String::from_utf8_lossy(&run.output().await?.stderr).into_owned())
        };
        c.claim(
            "the namespace enforces the Pod Security level restricted",
            privileged,
            |said| said.contains("violates PodSecurity \"restricted"),
        )
        .await;
        c.claim(
            "the ServiceAccount may read what names mean and forward ports, here and nowhere else",
            self.rights(),
            |rights| rights == "yes yes yes yes no no no no no",
        )
        .await;

        // === what nobody gets without a password ===

        let network = self.network()?;
        let all = endpoints.1.borrow().clone();
        let ip = all.first().context("there is a replica")?.ip;
        let open = joined(in_network(network.clone(), async move || {
            open_ports(ip).await
        }));
        c.claim(
            "of a replica's TCP ports two are open",
            async { Ok(format!("{:?}", open.await?)) },
            |open| open == format!("{:?}", [PORT, ADMIN]),
        )
        .await;
        let stranger = Person::new("bob", "wrong", &[&first.certificate])?;
        let refused = joined(in_network(network.clone(), async move || {
            without_a_password(&stranger, ip).await
        }));
        c.claim(
            "without a password every request is refused",
            async { Ok(refused.await??.join("; ")) },
            |bad| bad.is_empty(),
        )
        .await;

        // === under load ===

        let second = Secrets::new("ann:first:secret\ncarol:third\n")?;
        let both = [first.certificate.as_str(), &second.certificate];
        let ann = Person::new("ann", "first:secret", &both)?;
        let load = GatewayLoad::start(network.clone(), ann.clone(), endpoints.1.clone());
        enough(&load).await?;
        c.claim_of(
            "load through both replicas: none fails",
            async { Ok(report_of(&load)) },
            |tally| served_by_all(tally, &pods) && is_clean(tally),
        )
        .await;

        let killed = all[0].pod.clone();
        let kill = async {
            self.kill_container(&killed).await?;
            let restarted = async || {
                let restarts = team.pods().await?.get(&killed).copied();
                Ok(restarts.filter(|restarts| *restarts > 0))
            };
            until(LIMIT, "the killed replica to be started again", restarted).await?;
            two(&endpoints.1, &[]).await?;
            enough(&load).await?;
            Ok(report_of(&load))
        };
        c.claim_of(
            "one replica killed: what it had is cut, and nothing else; every request is served",
            kill,
            |tally| tally.unserved == 0 && tally.failed.iter().all(|failed| failed.pod == killed),
        )
        .await;

        let old: Vec<String> = team.pods().await?.into_keys().collect();
        let update = async {
            team.kubectl(&["rollout", "restart", "deployment", NAME])
                .await?;
            until(LIMIT, "the old replicas to be gone", async || {
                let pods = team.pods().await?;
                Ok(
                    (pods.len() == 2 && !old.iter().any(|old| pods.contains_key(old)))
                        .then_some(()),
                )
            })
            .await?;
            two(&endpoints.1, &old).await?;
            enough(&load).await?;
            Ok(report_of(&load))
        };
        c.claim_of(
            "a rolling update: every connection is accepted, no stream is cut",
            update,
            is_clean,
        )
        .await;
        let pods = team.pods().await?;

        let change = async {
            team.apply(&second.manifest()).await?;
            let carol = Person::new("carol", "third", &[&second.certificate])?;
            let all = endpoints.1.borrow().clone();
            for LoadEndpoint { ip, .. } in all {
                until(LIMIT, "the Secrets to arrive", async || {
                    let (network, carol) = (network.clone(), carol.clone());
                    let asking = in_network(network, async move || {
                        carol.tunnel(ip, "web:8080").await.map(drop)
                    });
                    Ok(joined(asking).await?.ok())
                })
                .await?;
            }
            enough(&load).await?;
            Ok(report_of(&load))
        };
        c.claim_of(
            "Secrets changed: none fails of a user who stays",
            change,
            is_clean,
        )
        .await;
        let bob = Person::new("bob", "second", &[&second.certificate])?;
        let old = Person::new("ann", "first:secret", &[&first.certificate])?;
        let asked = async {
            let mut said = Vec::new();
            let all = endpoints.1.borrow().clone();
            for LoadEndpoint { ip, .. } in all {
                let (bob, old) = (bob.clone(), old.clone());
                let asking = in_network(network.clone(), async move || {
                    let bob = bob.tunnel(ip, "web:8080").await.map(drop);
                    (bob, old.connect(ip).await.map(drop))
                });
                let (bob, old) = joined(asking).await?;
                said.push(
                    bob.err()
                        .map_or_else(String::new, |error| error.to_string()),
                );
                said.push(
                    old.err()
                        .map_or_else(String::new, |error| format!("{error:#}")),
                );
            }
            said.push(format!("{}", team.pods().await? == pods));
            Ok(said.join("; "))
        };
        c.claim(
            "then a user who is gone gets 407 and the old certificate is not shown, by the very same Pods",
            asked,
            |said| {
                let said: Vec<_> = said.split("; ").collect();
                let is_new = |error: &str| error.contains("invalid peer certificate");
                matches!(said[..], [a, b, c, d, "true"]
                    if a.contains(" 407 ") && is_new(b) && c.contains(" 407 ") && is_new(d))
            },
        )
        .await;

        let evict = async {
            let evict = async |pod: &str| {
                let eviction = serde_json::json!({
                    "apiVersion": "policy/v1", "kind": "Eviction",
                    "metadata": {"name": pod, "namespace": NAMESPACE},
                });
                let url = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction");
                let mut create = self.kubectl_command(&["create", "--raw", &url, "-f", "-"]);
                match output_of_input(&mut create, &eviction.to_string()).await {
                    Ok(_) => "evicted".to_owned(),
                    Err(error) => error.to_string(),
                }
            };
            let names: Vec<_> = pods.keys().collect();
            let first = evict(names[0]).await;
            let second = evict(names[1]).await;
            two(&endpoints.1, std::slice::from_ref(names[0])).await?;
            enough(&load).await?;
            let tally = report_of(&load);
            Ok((first, second, tally))
        };
        c.claim_of(
            "a drained node: one replica is evicted, the other not before the first is replaced; none fails",
            evict,
            |(first, second, tally)| {
                first == "evicted" && second.contains("disruption budget") && is_clean(tally)
            },
        )
        .await;
        c.claim_of(
            "at the end of the load nothing is open or failed",
            async { load.end().await },
            is_clean,
        )
        .await;
        Ok(())
    }

    /// Of the ServiceAccount: what it needs, then what would be too much.
    async fn rights(&self) -> Result<String> {
        let account = format!("--as=system:serviceaccount:{NAMESPACE}:{NAME}");
        let mut rights = Vec::new();
        for (verb, resource, namespace) in [
            ("watch", "services", NAMESPACE),
            ("list", "pods", NAMESPACE),
            ("list", "endpointslices.discovery.k8s.io", NAMESPACE),
            ("create", "pods/portforward", NAMESPACE),
            ("get", "secrets", NAMESPACE),
            ("create", "pods/exec", NAMESPACE),
            ("delete", "pods", NAMESPACE),
            ("list", "services", "default"),
            ("create", "pods/portforward", "default"),
        ] {
            let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
            let sub = format!("--subresource={sub}");
            let args = [
                "auth",
                "can-i",
                verb,
                resource,
                &sub,
                "--namespace",
                namespace,
                &account,
            ];
            // It says no with exit code 1.
            let said = self.kubectl_command(&args).output().await?;
            rights.push(String::from_utf8_lossy(&said.stdout).trim().to_owned());
        }
        Ok(rights.join(" "))
    }

    async fn kill_container(&self, pod: &str) -> Result<()> {
        let id = "jsonpath={.status.containerStatuses[0].containerID}";
        let id = self
            .kubectl(&["get", "pod", pod, "--namespace", NAMESPACE, "-o", id])
            .await?;
        let id = id
            .strip_prefix("containerd://")
            .context("a container of containerd")?;
        let kill = [
            "ctr",
            "--namespace",
            "k8s.io",
            "tasks",
            "kill",
            "--signal",
            "SIGKILL",
            id,
        ];
        output(&mut self.enter(kill)?).await?;
        Ok(())
    }

    /// Where the Service leads, a second late; kubectl's end is that of the watch.
    fn gateway_endpoints(&self) -> Result<(Child, watch::Receiver<Vec<LoadEndpoint>>)> {
        let url = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?watch=true&labelSelector=\
             kubernetes.io%2Fservice-name%3D{NAME}"
        );
        let mut kubectl = self
            .kubectl_command(&["get", "--raw", &url])
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let mut lines =
            BufReader::new(kubectl.stdout.take().context("no standard output")?).lines();
        let (seen, mut late) = mpsc::channel(1024);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                let read = (Instant::now() + LAG, endpoints_of(&event["object"]));
                if seen.send(read).await.is_err() {
                    break;
                }
            }
        });
        let (published, endpoints) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Some((at, endpoints)) = late.recv().await {
                sleep_until(at).await;
                let _ = published.send(endpoints);
            }
        });
        Ok((kubectl, endpoints))
    }
}

/// The ready ones of a slice; where there is none, those that end and serve, as kube-proxy has it.
fn endpoints_of(slice: &Value) -> Vec<LoadEndpoint> {
    let with = |condition: &str| {
        let all = slice["endpoints"].as_array().into_iter().flatten();
        let those = all.filter(|endpoint| endpoint["conditions"][condition] == true);
        let named = those.filter_map(|endpoint| {
            Some(LoadEndpoint {
                pod: endpoint["targetRef"]["name"].as_str()?.to_owned(),
                ip: endpoint["addresses"][0].as_str()?.parse().ok()?,
            })
        });
        named.collect::<Vec<_>>()
    };
    match with("ready") {
        ready if ready.is_empty() => with("serving"),
        ready => ready,
    }
}

/// Waits for two endpoints, none of them one of these Pods.
async fn two(endpoints: &watch::Receiver<Vec<LoadEndpoint>>, gone: &[String]) -> Result<()> {
    let are_two =
        |all: &Vec<LoadEndpoint>| all.len() == 2 && !all.iter().any(|e| gone.contains(&e.pod));
    let mut endpoints = endpoints.clone();
    let waited = timeout(LIMIT, endpoints.wait_for(are_two)).await;
    waited.context("there are no two ready replicas")??;
    Ok(())
}

async fn enough(load: &GatewayLoad) -> Result<()> {
    let before = load.served();
    until(LIMIT, "requests to be served", async || {
        Ok((load.served() >= before + ENOUGH).then_some(()))
    })
    .await
}

/// Says how it went, and begins anew.
fn report_of(load: &GatewayLoad) -> RequestTally {
    let tally = load.take();
    info!("{}", tally.summary());
    tally
}

fn is_clean(tally: &RequestTally) -> bool {
    tally.failed.is_empty() && tally.unserved == 0
}

fn served_by_all(tally: &RequestTally, pods: &BTreeMap<String, u64>) -> bool {
    [LoadKind::Connect, LoadKind::Socks]
        .into_iter()
        .all(|kind| {
            let served = tally.served_by(kind);
            pods.keys().all(|pod| served.contains_key(pod.as_str()))
        })
}

/// What was answered otherwise than with a refusal.
async fn without_a_password(stranger: &Person, ip: IpAddr) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let other = |what: &str, answer: &str, begins: &str| {
        (!answer.starts_with(begins)).then(|| format!("{what}: {answer:?}"))
    };
    let host = format!("{ip}:{PORT}");
    for (what, request, begins) in [
        ("a tunnel", "CONNECT web:8080", "HTTP/1.1 407 "),
        (
            "a tunnel to ourselves",
            "CONNECT localhost:9090",
            "HTTP/1.1 407 ",
        ),
        (
            "a request to forward",
            "GET http://web:8080/",
            "HTTP/1.1 407 ",
        ),
        ("the help page", "GET /", "HTTP/1.1 401 "),
        ("a PAC file", "GET /proxy.pac", "HTTP/1.1 401 "),
        ("an upgrade", "GET http://web:8080/ws", "HTTP/1.1 407 "),
    ] {
        let mut stream = stranger.connect(ip).await?;
        let request = format!("{request} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        wrong.extend(other(what, first_line(&head(&mut stream).await?), begins));
    }
    for (what, said, begins) in [
        (
            "SOCKS5 without a password",
            &b"\x05\x01\x00"[..],
            &b"\x05\xff"[..],
        ),
        (
            "SOCKS5 with a wrong one",
            b"\x05\x01\x02\x01\x03bob\x05wrong",
            b"\x05\x02\x01\x01",
        ),
        (
            "SOCKS4",
            b"\x04\x01\x1f\x90\x00\x00\x00\x01bob\x00web\x00",
            b"\x00\x5b",
        ),
    ] {
        let mut stream = stranger.connect(ip).await?;
        stream.write_all(said).await?;
        let mut answer = vec![0; begins.len()];
        let read = timeout(LIMIT, stream.read_exact(&mut answer)).await?;
        if read.is_err() || answer != begins {
            wrong.push(format!("{what}: {answer:?}"));
        }
    }
    let with_wrong = stranger.tunnel(ip, "web:8080").await.err();
    let said = with_wrong.map_or_else(|| "a tunnel".to_owned(), |error| error.to_string());
    wrong.extend(other(
        "a tunnel with a wrong password",
        &said,
        "HTTP/1.1 407 ",
    ));
    for (request, begins) in [
        ("GET /livez", "HTTP/1.1 200 "),
        ("GET /readyz", "HTTP/1.1 200 "),
        ("GET /", "HTTP/1.1 404 "),
        ("GET http://web:8080/", "HTTP/1.1 404 "),
        ("CONNECT web:8080", "HTTP/1.1 404 "),
    ] {
        let mut stream = TcpStream::connect((ip, ADMIN)).await?;
        let asked = format!("{request} HTTP/1.1\r\nHost: {ip}:{ADMIN}\r\n\r\n");
        stream.write_all(asked.as_bytes()).await?;
        wrong.extend(other(
            request,
            first_line(&head(&mut stream).await?),
            begins,
        ));
    }
    // Outside TLS nothing is told but that it is TLS.
    let mut stream = TcpStream::connect((ip, PORT)).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    let _ended = timeout(LIMIT, stream.read_to_end(&mut answer)).await?;
    if answer.first().is_some_and(|first| *first != 0x15) {
        wrong.push(format!("outside TLS: {answer:?}"));
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_end_are_used_where_no_other_is_ready() {
        let endpoint = |pod: &str, ready: bool, serving: bool| {
            serde_json::json!({
                "addresses": ["10.0.0.1"], "targetRef": {"name": pod},
                "conditions": {"ready": ready, "serving": serving, "terminating": !ready},
            })
        };
        let chosen = |endpoints: &[Value]| {
            let slice = serde_json::json!({"endpoints": endpoints});
            let pods = endpoints_of(&slice).into_iter().map(|e| e.pod);
            pods.collect::<Vec<_>>()
        };
        let (ready, ending) = (endpoint("a", true, true), endpoint("b", false, true));
        let broken = endpoint("c", false, false);
        assert_eq!(chosen(&[ending.clone(), ready, broken.clone()]), ["a"]);
        assert_eq!(chosen(&[ending, broken]), ["b"]);
        assert!(chosen(&[]).is_empty());
    }
}
