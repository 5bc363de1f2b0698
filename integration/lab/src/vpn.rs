//! A VPN has the machine's routes and DNS, and the cluster is reached through none of them: real VPN programs in a
//! namespace of their own ([`crate::machine`]), and programs that use `kubevpn` beside them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Child;

use crate::Lab;
use crate::binaries::{go_install, lock, publish};
use crate::clients::kits::{Kit, Kits};
use crate::command::{BUILD_LIMIT, FOR_CHECK, command, output, output_within, require};
use crate::machine::LabMachine;
use crate::section::table_cell;

const SING_BOX: &str = "github.com/sagernet/sing-box/cmd/sing-box";
const SING_BOX_VERSION: &str = "v1.14.1";
/// Where sing-box answers DNS: the other address of its tunnel's network.
const TUN_DNS: &str = "172.19.0.2";

const NAME: &str = "productpage.default.svc.cluster.local";
const SOCKS: &str = "127.0.0.1:1080";
const HTTP: &str = "127.0.0.1:3128";
const DNS_PORT: &str = "5353";

/// Exit codes of curl for a host that cannot be reached: an unknown name (6), no connection (7), a timeout (28), and a
/// connection that is reset in a TLS handshake (35), before an answer (52) or while one is read (56).
const UNREACHABLE: [i32; 6] = [6, 7, 28, 35, 52, 56];

/// A VPN as it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vpn {
    /// sing-box with a TUN, `auto_route` and `strict_route`; its DNS knows no name of the cluster.
    SingBox,
    /// The same with made-up addresses for every name.
    SingBoxFakeIp,
    /// The same, which sends names below `cluster.local` to kubevpn's SOCKS listener.
    SingBoxChained,
    /// wireguard-go, with all routes, and the API server and a DNS that knows no name at its other end.
    WireGuard,
    /// OpenVPN, likewise.
    OpenVpn,
}

/// A claim about one of them.
#[derive(Debug)]
pub struct Claimed {
    /// About which.
    pub vpn: Vpn,
    /// In a few words.
    pub what: &'static str,
    /// What was seen, if it holds; else what contradicts it.
    pub seen: Result<String, String>,
}

impl Vpn {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::SingBox,
        Self::SingBoxFakeIp,
        Self::SingBoxChained,
        Self::WireGuard,
        Self::OpenVpn,
    ];

    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingBox => "sing-box",
            Self::SingBoxFakeIp => "sing-box, fake-ip DNS",
            Self::SingBoxChained => "sing-box, `cluster.local` to kubevpn",
            Self::WireGuard => "WireGuard",
            Self::OpenVpn => "OpenVPN",
        }
    }

    /// Whether its DNS has a made-up address for every name, and not NXDOMAIN.
    fn has_fake_ip(self) -> bool {
        matches!(self, Self::SingBoxFakeIp | Self::SingBoxChained)
    }

    /// Of sing-box.
    fn config(self) -> Value {
        let no_such_name = json!({"action": "predefined", "rcode": "NXDOMAIN"});
        let made_up = json!({"query_type": ["A"], "action": "route", "server": "fake"});
        let mut rules = vec![json!({"port": 53, "action": "hijack-dns"})];
        if self == Self::SingBoxChained {
            rules.push(
                json!({"domain_suffix": "cluster.local", "action": "route", "outbound": "cluster"}),
            );
        }
        let (host, port) = SOCKS.split_once(':').unwrap_or((SOCKS, ""));
        json!({
            "log": {"level": "warn"},
            "dns": {
                "servers": [
                    {"type": "fakeip", "tag": "fake", "inet4_range": "198.18.0.0/15"},
                    {"type": "hosts", "tag": "hosts"},
                ],
                "rules": match self.has_fake_ip() {
                    true => vec![made_up, no_such_name],
                    false => vec![no_such_name],
                },
                "final": "hosts",
            },
            "inbounds": [{
                "type": "tun", "interface_name": "tun0", "address": ["172.19.0.1/30"],
                "auto_route": true, "strict_route": true, "stack": "system",
            }],
            "outbounds": [
                {"type": "direct", "tag": "direct"},
                {"type": "socks", "tag": "cluster", "server": host, "server_port": port.parse::<u16>().unwrap_or(0)},
            ],
            "route": {
                "auto_detect_interface": true, "rules": rules, "final": "direct",
                "default_domain_resolver": "hosts",
            },
        })
    }
}

/// A machine whose routes and DNS a VPN has. Ends when dropped.
struct VpnMachine {
    machine: LabMachine,
    _children: Vec<Child>,
    _server: Option<LabMachine>,
}

impl From<WireGuard> for VpnMachine {
    fn from(wireguard: WireGuard) -> Self {
        let children = [Some(wireguard.of_server), wireguard.of_machine];
        Self {
            machine: wireguard.machine,
            _children: children.into_iter().flatten().collect(),
            _server: Some(wireguard.server),
        }
    }
}

/// A machine whose routes WireGuard has, and its server. Ends when dropped.
pub(crate) struct WireGuard {
    server: LabMachine,
    pub(crate) machine: LabMachine,
    /// wireguard-go, and what sets it up.
    go: String,
    wg: String,
    /// Keys of the server and of the machine.
    public: Vec<String>,
    of_server: Child,
    of_machine: Option<Child>,
}

impl WireGuard {
    /// Takes the tunnel away: its link with the address and the routes.
    pub(crate) async fn disconnect(&mut self) -> Result<()> {
        match self.of_machine.take() {
            Some(mut running) => Ok(running.kill().await?),
            None => Ok(()),
        }
    }

    /// Makes the tunnel, in which the machine has this address.
    pub(crate) async fn connect(&mut self, lab: &Lab, host: u8) -> Result<()> {
        let (s, machine, wg) = (&lab.settings, &self.machine, &self.wg);
        let address = s.tunnel_net(machine.number(), host);
        let peer = format!("peer {} allowed-ips {address}/32", self.public[1]);
        self.server.sh(&format!("{wg} set wgs {peer}")).await?;
        let there = async || Ok(machine.sh(&format!("{wg} show wgc")).await.is_ok());
        let line = [self.go.as_str(), "-f", "wgc"];
        self.of_machine = Some(machine.start(&line, "its link", there).await?);
        machine
            .sh(&format!(
                "{wg} set wgc private-key key peer {} endpoint {}:51820 allowed-ips 0.0.0.0/0
                 ip addr add {address}/29 dev wgc; ip link set wgc up; ip route add default dev wgc",
                self.public[0],
                s.vpn_net(machine.number(), 1),
            ))
            .await
            .map(drop)
    }
}

struct VpnClaims<F> {
    vpn: Vpn,
    report: F,
    all: Vec<Claimed>,
}

impl<F: FnMut(&Claimed)> VpnClaims<F> {
    fn claim(&mut self, what: &'static str, seen: Result<String>) {
        let seen = seen.map_err(|error| format!("{error:#}"));
        let claimed = Claimed {
            vpn: self.vpn,
            what,
            seen,
        };
        (self.report)(&claimed);
        self.all.push(claimed);
    }
}

impl Lab {
    /// Tries all that people use behind one VPN.
    ///
    /// # Errors
    /// No cluster; a package that cannot be installed; a VPN that does not start.
    pub async fn vpn(
        &self,
        kubevpn: &Path,
        vpn: Vpn,
        report: impl FnMut(&Claimed),
    ) -> Result<Vec<Claimed>> {
        self.api_ready().await?;
        require(&FOR_CHECK)?;
        Kits::new(self).need(Kit::Machine("chromium")).await?;
        let field = "jsonpath={.spec.clusterIP}";
        let service = ["get", "service", "productpage", "-o", field];
        let cluster_ip = self.kubectl(&service).await?;
        let running = self.start_vpn(vpn).await.context(vpn.name())?;
        let machine = &running.machine;
        let mut claims = VpnClaims {
            vpn,
            report,
            all: Vec::new(),
        };
        let c = &mut claims;
        let url = format!("http://{NAME}:9080/");
        let program = kubevpn.display().to_string();
        c.claim("the VPN's DNS", vpn_dns(machine, vpn).await);
        c.claim("`check`", checked(machine, &program, vpn).await);
        if vpn != Vpn::SingBoxChained {
            let pod = [
                "get",
                "pods",
                "-l",
                "app=productpage",
                "-o",
                "jsonpath={.items[0].status.podIP}",
            ];
            let by_ip = format!("http://{}:9080/", self.kubectl(&pod).await?);
            c.claim(
                "a Pod's address, by route, fails",
                fails(machine, &by_ip).await,
            );
            c.claim(
                "a Service's name, by route, fails",
                fails(machine, &url).await,
            );
        }
        let dns = format!("127.0.0.1:{DNS_PORT}");
        let flags = [
            "--listen-socks",
            SOCKS,
            "--listen-http",
            HTTP,
            "--listen-dns",
            &dns,
        ];
        let proxy = machine.proxy(kubevpn, &flags).await?;
        let (socks5h, http) = (format!("socks5h://{SOCKS}"), format!("http://{HTTP}"));
        let through =
            async |proxy: &str, url: &str| answers(machine, &["--proxy", proxy, url]).await;
        c.claim("`proxy-out`, `socks5h://`", through(&socks5h, &url).await);
        c.claim("`proxy-out`, HTTP", through(&http, &url).await);
        c.claim("DNS helper", helper(machine, &cluster_ip).await);
        c.claim("PAC file, Chromium", chromium(machine, &url).await);
        if vpn == Vpn::SingBoxFakeIp {
            let refused = through(&format!("socks5://{SOCKS}"), &url).await;
            let sentence = match refused {
                Ok(answer) => Err(anyhow::anyhow!("answered: {answer}")),
                Err(_) => proxy.last_refusal().and_then(|sentence| {
                    let sentence = sentence.context("no refusal in the log")?;
                    ensure!(
                        sentence.contains("socks5h"),
                        "the sentence does not help: {sentence}"
                    );
                    Ok(sentence)
                }),
            };
            c.claim(
                "`socks5://`, a made-up address: the sentence helps",
                sentence,
            );
        }
        if vpn == Vpn::SingBoxChained {
            c.claim(
                "a Service's name, by the VPN's route",
                answers(machine, &[&url]).await,
            );
            c.claim("UDP to the cluster is refused", udp(machine).await);
        }
        drop(proxy);
        if vpn != Vpn::SingBoxChained {
            c.claim("`run`", ran(machine, &[&program, "run"], &url).await);
            c.claim(
                "`run --isolated`",
                ran(machine, &[&program, "run", "--isolated"], &url).await,
            );
            for (what, flag, proxy) in [
                ("`connect --socks`", "--socks", &socks5h),
                ("`connect --http`", "--http", &http),
            ] {
                let seen = connected(machine, &program, flag, proxy, &url).await;
                c.claim(what, seen);
            }
        }
        if vpn == Vpn::WireGuard {
            c.claim(
                "`proxy-out --wait-api`, then the VPN comes up",
                self.waited(&program, &socks5h, &url).await,
            );
        }
        Ok(claims.all)
    }

    /// Starts `proxy-out --wait-api` on another machine while its tunnel is away, then makes the tunnel.
    async fn waited(&self, kubevpn: &str, proxy: &str, url: &str) -> Result<String> {
        let mut wireguard = self.wireguard(1).await?;
        wireguard.disconnect().await?;
        let machine = &wireguard.machine;
        let line = [kubevpn, "proxy-out", "--wait-api"];
        let waits = async || Ok(machine.sh("grep -q 'waiting: ' *.log").await.is_ok());
        let _proxy = machine.start(&line, "`waiting:` in its log", waits).await?;
        wireguard.connect(self, 2).await?;
        answers(&wireguard.machine, &["--proxy", proxy, url]).await
    }

    async fn start_vpn(&self, vpn: Vpn) -> Result<VpnMachine> {
        match vpn {
            Vpn::SingBox | Vpn::SingBoxFakeIp | Vpn::SingBoxChained => {
                self.start_sing_box(vpn).await
            }
            Vpn::WireGuard => Ok(self.wireguard(0).await?.into()),
            Vpn::OpenVpn => self.start_openvpn().await,
        }
    }

    async fn start_sing_box(&self, vpn: Vpn) -> Result<VpnMachine> {
        let sing_box = self.sing_box().await?.display().to_string();
        let machine = self.machine(0).await?;
        let config = machine.dir.path().join("sing-box.json");
        fs::write(&config, vpn.config().to_string())?;
        set_dns(&machine, TUN_DNS).await?;
        let config = config.display().to_string();
        let line = [sing_box.as_str(), "run", "-c", &config];
        let there = async || routed(&machine, "tun0").await;
        let child = machine.start(&line, "the VPN's route", there).await?;
        Ok(VpnMachine {
            machine,
            _children: vec![child],
            _server: None,
        })
    }

    /// The server's end of a VPN, which is between the machine and the API server; and the machine, whose DNS is at the
    /// API server's address.
    async fn ends(&self, number: u8) -> Result<(LabMachine, LabMachine)> {
        let mut server = self.machine(number).await?;
        server.deny_names().await?;
        let machine = self.machine_behind(&server).await?;
        // The way back into the tunnel; it goes with the link.
        let tunnel = format!("{}/29", self.settings.tunnel_net(number, 0));
        output(command("ip")?.args(["route", "replace", &tunnel, "via", server.ip()])).await?;
        set_dns(&machine, &self.settings.machine_net(number, 1)).await?;
        Ok((server, machine))
    }

    /// WireGuard between a machine of this number and another, which is between it and the API server.
    pub(crate) async fn wireguard(&self, number: u8) -> Result<WireGuard> {
        let packages = ["wireguard-go", "wireguard-tools"];
        let root = self.debian("debian-wireguard", &packages).await?;
        let program = |name: &str| root.join("usr/bin").join(name).display().to_string();
        let (go, wg) = (program("wireguard-go"), program("wg"));
        let (server, machine) = self.ends(number).await?;
        let mut public = Vec::new();
        for end in [&server, &machine] {
            // wireguard-go has a socket there, by the link's name.
            let own = "mkdir -p /run/wireguard; mount -t tmpfs tmpfs /run/wireguard";
            let keys = format!("{own}; {wg} genkey >key; {wg} pubkey <key");
            public.push(end.sh(&keys).await?.trim().to_owned());
        }
        let there = async || Ok(server.sh(&format!("{wg} show wgs")).await.is_ok());
        let line = [go.as_str(), "-f", "wgs"];
        let of_server = server.start(&line, "its link", there).await?;
        let address = self.settings.tunnel_net(number, 1);
        server
            .sh(&format!(
                "{wg} set wgs listen-port 51820 private-key key
                 ip addr add {address}/29 dev wgs; ip link set wgs up"
            ))
            .await?;
        let mut wireguard = WireGuard {
            server,
            machine,
            go,
            wg,
            public,
            of_server,
            of_machine: None,
        };
        wireguard.connect(self, 2).await?;
        Ok(wireguard)
    }

    async fn start_openvpn(&self) -> Result<VpnMachine> {
        let packages = [
            "openvpn",
            "liblzo2-2",
            "libpkcs11-helper1",
            "libnl-genl-3-200",
            "libnl-3-200",
        ];
        let root = self.debian("debian-openvpn", &packages).await?;
        let openvpn = root.join("usr/sbin/openvpn").display().to_string();
        let libraries = format!(
            "LD_LIBRARY_PATH={0}/usr/lib/x86_64-linux-gnu:{0}/lib/x86_64-linux-gnu",
            root.display()
        );
        let s = &self.settings;
        let (server, machine) = self.ends(0).await?;
        let pki = s.path("pki");
        let certificate = |name: &str| {
            format!("--ca {pki}/ca.crt --cert {pki}/{name}.crt --key {pki}/{name}.key")
        };
        let of_server = format!(
            "--dev tuns --dev-type tun --topology subnet --server {} 255.255.255.248 --dh none {}",
            s.tunnel_net(0, 0),
            certificate("server")
        );
        // The routes of `redirect-gateway def1`, which wants a default route to begin with.
        let of_machine = format!(
            "--client --dev tunc --dev-type tun --nobind --remote {} --route 0.0.0.0 128.0.0.0 --route 128.0.0.0 128.0.0.0 {}",
            s.vpn_net(0, 1),
            certificate("admin")
        );
        let mut children = Vec::new();
        for (end, link, options) in [(&server, "tuns", of_server), (&machine, "tunc", of_machine)] {
            let mut line = vec!["env", libraries.as_str(), openvpn.as_str()];
            line.extend(options.split(' '));
            let there = async || match link {
                "tunc" => routed(end, link).await,
                _ => Ok(end.sh(&format!("ip addr show {link}")).await.is_ok()),
            };
            children.push(end.start(&line, "its link", there).await?);
        }
        Ok(VpnMachine {
            machine,
            _children: children,
            _server: Some(server),
        })
    }

    /// From its Go module; a few minutes on an empty Go cache.
    async fn sing_box(&self) -> Result<PathBuf> {
        let cache = self.settings.cache();
        let _lock = lock(cache.join("lock")).await?;
        let dir = cache.join(format!("sing-box-{SING_BOX_VERSION}"));
        if !dir.exists() {
            publish(&dir, async |to| {
                let mut go = go_install(to)?;
                go.args(["-ldflags=-s -w", &format!("{SING_BOX}@{SING_BOX_VERSION}")]);
                output_within(BUILD_LIMIT, &mut go).await
            })
            .await?;
        }
        Ok(dir.join("sing-box"))
    }
}

/// Whether all that is not the machine's own goes there.
async fn routed(machine: &LabMachine, link: &str) -> Result<bool> {
    let route = machine.sh("ip route get 192.0.2.1 || true").await?;
    Ok(route.contains(&format!("dev {link} ")))
}

async fn set_dns(machine: &LabMachine, server: &str) -> Result<()> {
    let file = machine.dir.path().join("resolv.conf");
    fs::write(
        &file,
        format!("nameserver {server}\noptions timeout:1 attempts:1\n"),
    )?;
    machine
        .sh(&format!("mount --bind {} /etc/resolv.conf", file.display()))
        .await
        .map(drop)
}

/// Expects that curl does not reach the host, and returns its message.
async fn fails(machine: &LabMachine, url: &str) -> Result<String> {
    let curl = ["curl", "-sS", "--max-time", "5", "-o", "/dev/null", url];
    let done = machine.command(&curl)?.output().await?;
    ensure!(!done.status.success(), "it was answered");
    // curl: (6) Could not resolve host: a.b
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    let code = done.status.code();
    ensure!(
        code.is_some_and(|code| UNREACHABLE.contains(&code)),
        "{}: {said}",
        done.status
    );
    Ok(said)
}

/// Expects an answer of the sample Service.
async fn answers(machine: &LabMachine, args: &[&str]) -> Result<String> {
    answered(&machine.curl(args).await?)
}

/// Expects the sample Service's own answer, which a browser's error page about its host does not contain.
fn answered(body: &str) -> Result<String> {
    ensure!(
        body.contains(r#""service":"productpage""#),
        "another answer: {body:.500}"
    );
    Ok("answered".to_owned())
}

/// Expects an answer of the VPN's DNS, which is in `/etc/resolv.conf`: dig fails where none comes.
async fn vpn_dns(machine: &LabMachine, vpn: Vpn) -> Result<String> {
    let question = ["dig", "+noall", "+comments", "+answer", "+tries=1", NAME];
    let answer = output(&mut machine.command(&question)?).await?;
    let (wanted, seen) = match vpn.has_fake_ip() {
        true => ("198.18.", "a made-up address"),
        false => ("status: NXDOMAIN", "NXDOMAIN"),
    };
    ensure!(answer.contains(wanted), "it answers {answer}");
    Ok(seen.to_owned())
}

/// Expects that `check` finds no problem, names the API server, and warns of made-up addresses where the VPN has them.
async fn checked(machine: &LabMachine, kubevpn: &str, vpn: Vpn) -> Result<String> {
    let said = output(&mut machine.command(&[kubevpn, "check"])?).await?;
    // ok       api-server   https://10.246.0.1:6443 runs v1.34.4; a round trip takes 0.9 ms, …
    let server = said.lines().find_map(|line| {
        let (_, text) = line.split_once(" api-server ")?;
        let (server, _) = text.split_once(';')?;
        Some(server.trim().to_owned())
    });
    let server = server.with_context(|| format!("the API server is not named: {said}"))?;
    let warns = said.contains("made-up address (fake-ip)");
    ensure!(warns == vpn.has_fake_ip(), "its line on DNS: {said}");
    Ok(server)
}

async fn helper(machine: &LabMachine, cluster_ip: &str) -> Result<String> {
    let question = [
        "dig",
        "+short",
        "+time=5",
        "+tries=1",
        "@127.0.0.1",
        "-p",
        DNS_PORT,
        NAME,
    ];
    let answer = output(&mut machine.command(&question)?).await?;
    let address = answer.trim();
    ensure!(
        address == cluster_ip,
        "it answers {address:?}, not {cluster_ip}"
    );
    Ok("the Service's ClusterIP".to_owned())
}

async fn chromium(machine: &LabMachine, url: &str) -> Result<String> {
    let pac = format!("--proxy-pac-url=http://{HTTP}/proxy.pac");
    let data = format!(
        "--user-data-dir={}",
        machine.dir.path().join("chromium").display()
    );
    let line = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        &data,
        &pac,
        "--dump-dom",
        url,
    ];
    let mut chromium = machine.command(&line)?;
    answered(&output_within(Duration::from_secs(90), &mut chromium).await?)
}

async fn udp(machine: &LabMachine) -> Result<String> {
    // A name for DNS over UDP that the VPN sends to our listener, which speaks TCP alone.
    let name = "kube-dns.kube-system.svc.cluster.local";
    let script =
        format!("exec 3<>/dev/udp/{name}/5000; printf x >&3; timeout 5 head -c 1 <&3 | wc -c");
    let got = output(&mut machine.command(&["bash", "-c", &script])?).await?;
    ensure!(got.trim() == "0", "an answer came");
    let log = fs::read_to_string(machine.dir.path().join("sing-box.log"))?;
    let refused = log.lines().rev().find(|line| line.contains("socks"));
    let refused = refused.with_context(|| format!("sing-box says nothing of a refusal: {log}"))?;
    // RFC 1928 section 6: command not supported.
    const REPLY: &str = "request rejected, code=7";
    ensure!(refused.ends_with(REPLY), "another reply: {refused}");
    Ok(REPLY.to_owned())
}

async fn ran(machine: &LabMachine, run: &[&str], url: &str) -> Result<String> {
    let line = [run, &["--", "curl", "-sS", "--max-time", "40", url]].concat();
    answered(&output(&mut machine.command(&line)?).await?)
}

async fn connected(
    machine: &LabMachine,
    kubevpn: &str,
    flag: &str,
    proxy: &str,
    url: &str,
) -> Result<String> {
    output(&mut machine.command(&[kubevpn, "connect", flag])?).await?;
    let answer = answers(machine, &["--proxy", proxy, url]).await;
    output(&mut machine.command(&[kubevpn, "quit"])?).await?;
    answer
}

/// Their rows in Markdown.
pub fn table(claims: &[Claimed]) -> String {
    let mut table = String::from("| VPN | tried | seen |\n|-|-|-|\n");
    for claimed in claims {
        let seen = match &claimed.seen {
            Ok(seen) => seen.clone(),
            Err(error) => format!("**{error}**"),
        };
        table += &format!(
            "| {} | {} | {} |\n",
            claimed.vpn.name(),
            claimed.what,
            table_cell(&seen)
        );
    }
    table
}
