//! A person's machine: a network and mount namespace of its own with one link, at whose other end the API server is
//! reached. VPNs and lines that go away are tried in it, and nothing of this machine changes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Lab;
use crate::command::{command, last_lines, output};
use crate::process::{LabProcess, Signal, until};

/// Long enough for any machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with all that runs in it when dropped.
pub(crate) struct LabMachine {
    /// Holds the namespaces.
    init: Child,
    /// Which of those that there are at the same time.
    number: u8,
    /// This machine's end of its link.
    link: String,
    /// Where the API server is.
    host_ip: String,
    own_ip: String,
    pub(crate) dir: tempfile::TempDir,
    relay: JoinSet<()>,
}

impl Lab {
    /// A machine whose kubeconfig leads to this cluster; no other has this number, which is below [`MACHINES`].
    ///
    /// [`MACHINES`]: crate::settings::MACHINES
    pub(crate) async fn machine(&self, number: u8) -> Result<LabMachine> {
        let s = &self.settings;
        let (host_ip, own_ip) = (s.machine_net(number, 1), s.machine_net(number, 2));
        let mut machine = LabMachine::alone(number, host_ip, own_ip).await?;
        machine.link = format!("{}m{number}", s.link());
        let link = machine.link.clone();
        let _ = output(command("ip")?.args(["link", "del", &link])).await; // of an earlier run
        let add = [
            "link", "add", &link, "type", "veth", "peer", "name", "up0", "netns",
        ];
        output(command("ip")?.args(add).arg(machine.pid()?.to_string())).await?;
        let host = format!("{}/29", machine.host_ip);
        output(command("ip")?.args(["addr", "add", &host, "dev", &link])).await?;
        output(command("ip")?.args(["link", "set", &link, "up"])).await?;
        machine.set_address(&s.machine_net(number, 2)).await?;
        let api: SocketAddr = format!("127.0.0.1:{}", s.api_port()).parse()?;
        let listener = TcpListener::bind((machine.host_ip.as_str(), s.api_port())).await?;
        machine.relay.spawn(relay(listener, api));
        self.write_kubeconfig(&machine)?;
        Ok(machine)
    }

    /// A machine with one link to another, and no route but to that: where a VPN is wanted to reach this cluster. The
    /// other forwards packets, and its end of the link is [`Settings::vpn_net`] 1.
    ///
    /// [`Settings::vpn_net`]: crate::settings::Settings::vpn_net
    pub(crate) async fn machine_behind(&self, gateway: &LabMachine) -> Result<LabMachine> {
        let s = &self.settings;
        let number = gateway.number;
        let (host_ip, own_ip) = (gateway.host_ip.clone(), s.vpn_net(number, 2));
        let machine = LabMachine::alone(number, host_ip, own_ip).await?;
        let (near, far) = (machine.pid()?.to_string(), gateway.pid()?.to_string());
        let add = [
            "link", "add", "down0", "netns", &far, "type", "veth", "peer", "name", "up0", "netns",
        ];
        output(command("ip")?.args(add).arg(&near)).await?;
        let up = |dev: &str, address: &str| {
            format!("ip addr add {address}/30 dev {dev}; ip link set {dev} up")
        };
        gateway.sh(&up("down0", &s.vpn_net(number, 1))).await?;
        gateway
            .sh("mount -t proc proc /proc; echo 1 >/proc/sys/net/ipv4/ip_forward")
            .await?;
        machine.sh(&up("up0", &machine.own_ip)).await?;
        self.write_kubeconfig(&machine)?;
        Ok(machine)
    }

    fn write_kubeconfig(&self, machine: &LabMachine) -> Result<()> {
        let s = &self.settings;
        let pki = s.path("pki");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{}:{}", machine.host_ip, s.api_port()),
                "certificate-authority": format!("{pki}/ca.crt"),
                "tls-server-name": "localhost",
            }}],
            "users": [{"name": "admin", "user": {
                "client-certificate": format!("{pki}/admin.crt"),
                "client-key": format!("{pki}/admin.key"),
            }}],
        });
        Ok(fs::write(machine.kubeconfig(), kubeconfig.to_string())?)
    }
}

impl LabMachine {
    /// Without a link.
    async fn alone(number: u8, host_ip: String, own_ip: String) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("kubevpn-machine-")
            .tempdir()?;
        let mut init = command("unshare")?;
        init.args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "sleep",
            "infinity",
        ]);
        let machine = Self {
            init: init.spawn()?,
            number,
            link: String::new(),
            host_ip,
            own_ip,
            dir,
            relay: JoinSet::new(),
        };
        let ns = PathBuf::from(format!("/proc/{}/ns/net", machine.pid()?));
        let own = fs::read_link("/proc/self/ns/net")?;
        until(PATIENCE, "a namespace", async || {
            Ok(fs::read_link(&ns).ok().filter(|ns| *ns != own))
        })
        .await?;
        machine
            .sh("mount -t sysfs sysfs /sys; ip link set lo up")
            .await?;
        Ok(machine)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// Its own address.
    pub(crate) fn ip(&self) -> &str {
        &self.own_ip
    }

    fn pid(&self) -> Result<u32> {
        self.init.id().context("the machine has ended")
    }

    /// A command in it, in its directory.
    pub(crate) fn command(&self, line: &[&str]) -> Result<Command> {
        let mut command = command("nsenter")?;
        command
            .arg(format!("--target={}", self.pid()?))
            // Another mount namespace is entered at its root.
            .arg(format!("--wd={}", self.dir.path().display()))
            .args(["--net", "--mount", "--"])
            .args(line)
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBEVPN_HOME", self.dir.path().join("kubevpn"));
        Ok(command)
    }

    pub(crate) async fn sh(&self, script: &str) -> Result<String> {
        output(&mut self.command(&["sh", "-euc", script])?).await
    }

    /// Gives it this address of its network, and no other, and the route through it.
    pub(crate) async fn set_address(&mut self, address: &str) -> Result<()> {
        address.clone_into(&mut self.own_ip);
        self.sh(&format!(
            "ip addr flush dev up0; ip addr add {}/29 dev up0; ip link set up0 up; ip route replace default via {}",
            self.own_ip, self.host_ip
        ))
        .await?;
        Ok(())
    }

    /// Takes the far end of its link down or up.
    pub(crate) async fn set_link(&self, up: bool) -> Result<()> {
        let to = if up { "up" } else { "down" };
        output(command("ip")?.args(["link", "set", &self.link, to])).await?;
        if up {
            // Its own end lost its routes with the carrier.
            self.sh(&format!("ip route replace default via {}", self.host_ip))
                .await?;
        }
        Ok(())
    }

    /// Makes a black hole of its link, or ends that: what comes back to it has another station's address.
    pub(crate) async fn set_hole(&self, hole: bool) -> Result<()> {
        let neighbour = ["neigh", if hole { "replace" } else { "del" }, &self.own_ip];
        let mut ip = command("ip")?;
        ip.args(neighbour).args(["dev", &self.link]);
        if hole {
            ip.args(["lladdr", "02:00:00:00:00:01", "nud", "permanent"]);
        }
        output(&mut ip).await.map(drop)
    }

    /// Answers DNS at the far end of its link: every name is unknown there.
    pub(crate) async fn deny_names(&mut self) -> Result<()> {
        let address = format!("{}:53", self.host_ip);
        let socket = UdpSocket::bind(&address).await;
        let socket = socket.with_context(|| {
            format!("DNS on {address}: another server of this machine may listen on all addresses")
        })?;
        self.relay.spawn(no_such_name(socket));
        Ok(())
    }

    /// Starts a program of it, and waits until this is so.
    pub(crate) async fn start(
        &self,
        line: &[&str],
        what: &str,
        mut ready: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<Child> {
        let name = Path::new(line.first().context("no program")?);
        let log = self.dir.path().join(name.file_name().context("no name")?);
        let log = log.with_extension("log");
        let file = fs::File::create(&log)?;
        let mut command = self.command(line)?;
        let mut child = command.stdout(file.try_clone()?).stderr(file).spawn()?;
        let said = || last_lines(&fs::read_to_string(&log).unwrap_or_default(), 8);
        until(PATIENCE, what, async || {
            if let Some(status) = child.try_wait()? {
                bail!("{}: {status}: {}", name.display(), said());
            }
            Ok(ready().await?.then_some(()))
        })
        .await
        .with_context(said)?;
        Ok(child)
    }

    /// `kubevpn proxy-out` in it, with these listeners, once it listens; ends when dropped.
    pub(crate) async fn proxy(&self, kubevpn: &Path, flags: &[&str]) -> Result<MachineProxy> {
        let kubevpn = kubevpn.display().to_string();
        let mut line = vec![kubevpn.as_str(), "proxy-out", "--log-format", "json"];
        line.extend(flags);
        let log = self.dir.path().join("proxy.log");
        let mut command = self.command(&line)?;
        command
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let said = || last_lines(&fs::read_to_string(&log).unwrap_or_default(), 3);
        let listening = async {
            while let Some(line) = lines.next_line().await? {
                if line.starts_with("SOCKS5 proxy listening") {
                    return Ok(());
                }
            }
            bail!("it ended before it listened: {}", said())
        };
        timeout(PATIENCE, listening)
            .await
            .context("it does not say that it listens")??;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(MachineProxy { child, log })
    }

    /// curl in it: the body, or what it said.
    pub(crate) async fn curl(&self, args: &[&str]) -> Result<String> {
        let line = ["curl", "-sS", "--fail-with-body", "--max-time", "40"];
        output(&mut self.command(&[&line[..], args].concat())?).await
    }
}

impl Drop for LabMachine {
    fn drop(&mut self) {
        // The link goes with the namespace, when the last that runs in it has ended; a daemon is no child of the lab.
        for process in self.init.id().map(beside).unwrap_or_default() {
            let _ = process.signal(Signal::Kill);
        }
        let _ = self.init.start_kill();
    }
}

/// All processes in the network namespace of this one; none if that is the lab's own, as it is until `unshare` has made
/// another.
fn beside(pid: u32) -> Vec<LabProcess> {
    let network = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let wanted = network(pid);
    if wanted.is_none() || wanted == network(std::process::id()) {
        return Vec::new();
    }
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| network(*pid) == wanted)
        .filter_map(LabProcess::find)
        .collect()
}

/// The program under test in a machine.
pub(crate) struct MachineProxy {
    pub(crate) child: Child,
    log: PathBuf,
}

impl MachineProxy {
    /// Its last access record's sentence of refusal.
    pub(crate) fn last_refusal(&self) -> Result<Option<String>> {
        let log = fs::read_to_string(&self.log)?;
        Ok(log.lines().rev().find_map(|line| {
            let record: serde_json::Value = serde_json::from_str(line).ok()?;
            let error = record["fields"]["error"].as_str()?;
            (record["target"] == "access").then(|| error.to_owned())
        }))
    }
}

async fn relay(listener: TcpListener, to: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        connections.spawn(async move {
            if let Ok(mut server) = TcpStream::connect(to).await {
                // A broken connection ends both.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Answers each query with NXDOMAIN: the query with other flags, RFC 1035 section 4.1.1.
async fn no_such_name(socket: UdpSocket) {
    let mut message = [0u8; 512];
    while let Ok((length, client)) = socket.recv_from(&mut message).await {
        message[2] |= 0x80; // QR
        message[3] = 0x83; // RA, and RCODE 3
        // A client that gets no answer times out.
        let _ = socket.send_to(&message[..length], client).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_ended_in_the_network_of_the_lab() {
        let child = command("sleep").unwrap().arg("600").spawn().unwrap();
        assert!(beside(child.id().unwrap()).is_empty());
        assert!(beside(std::process::id()).is_empty());
    }

    #[tokio::test]
    #[ignore = "needs root"]
    async fn daemon_in_a_machine_ends_with_it() {
        let machine = LabMachine::alone(0, String::new(), String::new()).await;
        let machine = machine.unwrap();
        let started = machine
            .sh("setsid sleep 600 >/dev/null 2>&1 & echo $!")
            .await;
        let pid = started.unwrap().trim().parse().unwrap();
        let daemon = LabProcess::find(pid).unwrap();
        daemon.signal(Signal::Stop).unwrap();
        drop(machine);
        until(PATIENCE, "the end of the daemon", async || {
            Ok((!daemon.is_alive()).then_some(()))
        })
        .await
        .unwrap();
    }
}
