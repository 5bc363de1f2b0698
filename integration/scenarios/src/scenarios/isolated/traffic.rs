//! What a command reaches, and what it does not.

use super::*;

/// One that closes and one that ends its writing send the same FIN: the kernel is asked, of the network inside.
pub(super) async fn clients_that_close_leave_nothing_open(cx: Context) -> anyhow::Result<()> {
    const CLIENTS: usize = 50;
    let script = format!(
        "import socket\n\
         for i in range({CLIENTS}):\n\
         \x20   s = socket.create_connection(('productpage', 9080))\n\
         \x20   s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n\
         \x20   s.recv(4096)\n\
         \x20   s.close()\n\
         print('done', flush=True)\n\
         input()\n"
    );
    for user in CommandUser::all(&cx)? {
        let path = user.files.path().join("clients.py");
        std::fs::write(&path, &script)?;
        // Standard input stays open until it is told to end.
        let script = format!("mkfifo go; exec {PYTHON} clients.py <>go");
        let mut running = user.start(&cx, &[], &script).await?;
        anyhow::ensure!(running.line == "done", "{}", running.line);
        let log = running.child.stderr.take().context("stderr is piped")?;
        let mut lines = BufReader::new(log).lines();
        let mut records = Vec::new();
        let reading = async {
            while records.len() < CLIENTS {
                let line = lines.next_line().await?.context("it has ended")?;
                records.extend(line.contains("access:").then_some(line));
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, reading).await??;
        // One that might still read is held for a while, and cut.
        let other = records
            .iter()
            .find(|record| !record.contains("end=\"eof\""));
        anyhow::ensure!(other.is_none(), "{other:?}");
        running.signal("TERM", running.pid()?).await?;
        running.ended().await?.with(143, "")?;
    }
    Ok(())
}

/// A connection that is refused is reset: its end would be taken for an empty answer.
pub(super) async fn a_reset_is_passed_on(cx: Context) -> anyhow::Result<()> {
    let script = "import socket; s = socket.create_connection(('multi', 9999)); s.recv(1)";
    for user in CommandUser::all(&cx)? {
        let ended = user.run(&cx, &[], &[PYTHON, "-c", script]).await?;
        ended.with(1, "ConnectionResetError")?;
        ended.with(1, "nothing listens")?;
    }
    Ok(())
}

pub(super) async fn curl_by_name_and_address(cx: Context) -> anyhow::Result<()> {
    let api = client(&cx.cluster.kubeconfig()).await?;
    let ips = cluster_ips(&api, "default", "productpage").await?;
    let pod = pod_ips(&api, "default", "productpage")
        .await?
        .swap_remove(0);
    let bracketed = |ip: &str| match ip.contains(':') {
        true => format!("[{ip}]"),
        false => ip.to_owned(),
    };
    let mut hosts: Vec<_> = [
        "productpage",
        "productpage.default",
        "productpage.default.svc",
        "productpage.default.svc.cluster.local",
        "productpage.default.svc.cluster.local.",
    ]
    .map(str::to_owned)
    .into();
    hosts.extend(ips.iter().map(|ip| bracketed(ip)));
    hosts.push(bracketed(&pod));
    let urls: Vec<_> = hosts
        .iter()
        .map(|host| format!("http://{host}:9080/"))
        .collect();
    for user in CommandUser::all(&cx)? {
        // Each on a connection of its own.
        let script = format!(
            "for url in {}; do {CURL} $url && echo || exit; done",
            urls.join(" ")
        );
        let script = script.replace('[', "'[").replace(']', "]'");
        let said = user.script(&cx, &script).await?;
        let answers = said.matches(r#""service":"productpage""#).count();
        anyhow::ensure!(
            answers == urls.len(),
            "{answers} answers of {urls:?}: {said}"
        );
    }
    Ok(())
}

pub(super) async fn static_go_client(cx: Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("get.go");
    std::fs::write(
        &source,
        r#"package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	http.DefaultTransport.(*http.Transport).Proxy = nil
	for _, url := range os.Args[1:] {
		answer, err := http.Get(url)
		if err != nil {
			panic(err)
		}
		io.Copy(os.Stdout, answer.Body)
		fmt.Println()
	}
}
"#,
    )?;
    let program = dir.path().join("get");
    let mut build = Command::new("go");
    build.args(["build", "-o"]).args([&program, &source]).envs([
        ("CGO_ENABLED", "0"),
        ("GOFLAGS", "-mod=mod"),
        ("GOPROXY", "off"),
    ]);
    let built = build.output().await?;
    anyhow::ensure!(built.status.success(), "go build: {built:?}");
    let api = client(&cx.cluster.kubeconfig()).await?;
    let ip = cluster_ips(&api, "default", "productpage")
        .await?
        .swap_remove(0);
    let by_ip = match ip.contains(':') {
        true => format!("http://[{ip}]:9080/"),
        false => format!("http://{ip}:9080/"),
    };
    for user in CommandUser::all(&cx)? {
        let own = user.files.path().join("get");
        std::fs::copy(&program, &own)?;
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755))?;
        let words = [
            own.to_str().context("UTF-8")?,
            "http://productpage:9080/",
            &by_ip,
        ];
        let ended = user.run(&cx, &[], &words).await?;
        let answers = ended.out.matches(r#""service":"productpage""#).count();
        anyhow::ensure!(answers == 2 && ended.code == Some(0), "{ended:?}");
    }
    Ok(())
}

/// A client that ends its writing before the answer comes.
pub(super) async fn half_closed_client_gets_the_whole_answer(cx: Context) -> anyhow::Result<()> {
    let script = "import socket; s = socket.create_connection(('productpage', 9080)); \
                  s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); s.shutdown(1); \
                  print(b''.join(iter(lambda: s.recv(4096), b'')).decode())";
    for user in CommandUser::all(&cx)? {
        let said = user
            .script(&cx, &format!("{PYTHON} -c \"{script}\""))
            .await?;
        anyhow::ensure!(said.contains(r#""service":"productpage""#), "{said}");
    }
    Ok(())
}

/// A program that asks a server of its own choice: `dig @8.8.8.8`, the resolvers of browsers.
pub(super) async fn any_dns_server_is_ours(cx: Context) -> anyhow::Result<()> {
    let api = client(&cx.cluster.kubeconfig()).await?;
    let ips = cluster_ips(&api, "default", "productpage").await?;
    let ip = ips
        .iter()
        .find_map(|ip| ip.parse::<std::net::Ipv4Addr>().ok())
        .context("productpage has no IPv4 address")?;
    let [a, b, c, d] = ip.octets();
    let wanted = format!("{a:02x} {b:02x} {c:02x} {d:02x}");
    let question = r"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0bproductpage\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01";
    for user in CommandUser::all(&cx)? {
        for server in [
            "8.8.8.8",
            "198.18.0.1",
            "10.96.0.10",
            "2001:4860:4860::8888",
        ] {
            let script = format!(
                "exec 3<>/dev/udp/{server}/53; printf '{question}' >&3; \
                 timeout 20 dd bs=512 count=1 status=none <&3 | od -An -v -tx1 -w512"
            );
            let said = user.script(&cx, &script).await?;
            anyhow::ensure!(said.trim_end().ends_with(&wanted), "{server}: {said}");
        }
        // With its length in front.
        let script = format!(
            "exec 3<>/dev/tcp/8.8.8.8/53; printf '\\x00\\x37{question}' >&3; \
             timeout 20 head -c 73 <&3 | od -An -v -tx1 -w512"
        );
        let said = user.script(&cx, &script).await?;
        anyhow::ensure!(said.trim_end().ends_with(&wanted), "by TCP: {said}");
    }
    Ok(())
}

/// At once, and not by silence.
pub(super) async fn what_is_not_tcp_is_refused(cx: Context) -> anyhow::Result<()> {
    let script = "import errno, socket\n\
        def refused(family, kind, protocol, to):\n\
        \x20   try:\n\
        \x20       s = socket.socket(family, kind, protocol)\n\
        \x20       s.sendto(b'12345678', to)\n\
        \x20   except OSError as e:\n\
        \x20       return errno.errorcode[e.errno]\n\
        print(refused(socket.AF_INET, socket.SOCK_DGRAM, 0, ('8.8.8.8', 443)),\n\
        \x20     refused(socket.AF_INET6, socket.SOCK_DGRAM, 0, ('2001:db8::1', 443)),\n\
        \x20     refused(socket.AF_INET, socket.SOCK_DGRAM, 0, ('224.0.0.251', 5353)),\n\
        \x20     refused(socket.AF_INET, socket.SOCK_DGRAM, 0, ('10.96.0.1', 123)))\n";
    for user in CommandUser::all(&cx)? {
        let path = user.files.path().join("udp.py");
        std::fs::write(&path, script)?;
        let path = path.to_str().context("UTF-8")?;
        let said = user.script(&cx, &format!("{PYTHON} {path}")).await?;
        anyhow::ensure!(said == "EPERM EPERM EPERM EPERM\n", "{said}");
    }
    Ok(())
}

pub(super) async fn hosts_outside_are_denied(cx: Context) -> anyhow::Result<()> {
    for user in CommandUser::all(&cx)? {
        let run = async |url: &str| {
            let script = format!("{CURL} {url}");
            user.run(&cx, &[], &["bash", "-c", &script]).await
        };
        // CURLE_COULDNT_RESOLVE_HOST
        run("http://www.example.test/")
            .await?
            .with(6, "a host outside the cluster was looked up")?;
        let literal = run("http://203.0.113.1/").await?;
        let is_denied = literal.err.contains("target=203.0.113.1:80");
        let is_denied = is_denied && literal.err.contains("refusal=\"denied\"");
        // As curl connects, sends, or waits for the answer.
        let is_reset = matches!(literal.code, Some(7 | 52 | 55 | 56));
        anyhow::ensure!(is_denied && is_reset, "{literal:?}");
    }
    Ok(())
}

/// A Service by its ClusterIP is the Service.
pub(super) async fn rules_hold_whatever_is_asked_for(cx: Context) -> anyhow::Result<()> {
    let api = client(&cx.cluster.kubeconfig()).await?;
    let ip = cluster_ips(&api, "default", "productpage")
        .await?
        .swap_remove(0);
    let by_ip = match ip.contains(':') {
        true => format!("http://[{ip}]:9080/"),
        false => format!("http://{ip}:9080/"),
    };
    for user in CommandUser::all(&cx)? {
        for flags in [
            &["--deny", "productpage:9080"][..],
            &["--deny", "*.default", "--allow", "reviews"],
            &["--allow", "reviews.default:80"],
        ] {
            for url in ["http://productpage:9080/", &by_ip] {
                let script = format!("{CURL} {url}");
                let ended = user.run(&cx, flags, &["bash", "-c", &script]).await?;
                let is_denied = ended.err.contains("refusal=\"denied\"");
                let is_reset = matches!(ended.code, Some(7 | 52 | 55 | 56));
                anyhow::ensure!(is_denied && is_reset, "{flags:?} {url}: {ended:?}");
            }
            let script = format!("{CURL} http://reviews/");
            let ended = user.run(&cx, flags, &["bash", "-c", &script]).await?;
            let reaches = ended.out.contains(r#""service":"reviews""#);
            anyhow::ensure!(
                reaches != flags.contains(&"*.default"),
                "{flags:?}: {ended:?}"
            );
        }
    }
    Ok(())
}

/// A server on the machine's loopback is reached by a name, and by no address.
pub(super) async fn loopback_is_its_own(cx: Context) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nhost";
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    for user in CommandUser::all(&cx)? {
        let script = format!(
            "{CURL} http://127.0.0.1:{port}/; echo $?; {CURL} http://localhost:{port}/; echo $?; \
             {CURL} http://host.kubevpn.internal:{port}/ && echo && {CURL} http://productpage:9080/"
        );
        let said = user.script(&cx, &script).await?;
        anyhow::ensure!(said.starts_with("7\n7\nhost\n{"), "{said}");
    }
    Ok(())
}

pub(super) async fn servers_inside_are_published(cx: Context) -> anyhow::Result<()> {
    let server = "import socket; l = socket.create_server(('127.0.0.1', 8000)); print('ready', flush=True); \
                  c, _ = l.accept(); c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\ninside'); c.close()";
    for user in CommandUser::all(&cx)? {
        let script = format!("exec {PYTHON} -c \"{server}\"");
        let flags = ["--publish", "0:8000"];
        let mut running = user.start(&cx, &flags, &script).await?;
        anyhow::ensure!(running.line == "ready", "{}", running.line);
        let mut log = BufReader::new(running.child.stderr.take().context("stderr is piped")?);
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, log.read_line(&mut line)).await??;
        let at = line
            .trim_end()
            .strip_prefix("port 8000 of the command is published at ")
            .with_context(|| format!("it says {line}"))?;
        let answer = Curl::run(&["--noproxy", "*", &format!("http://{at}/")]).await?;
        anyhow::ensure!(
            answer.body == "inside",
            "{} {}",
            answer.body,
            answer.message
        );
        running.ended().await?.with(0, "")?;
    }
    Ok(())
}

/// With what it takes to read in one namespace.
pub(super) async fn a_process_is_that_pod(cx: Context) -> anyhow::Result<()> {
    const RIGHTS: &[AccountRight] = &[
        right(&["get"], "apps", &["deployments"]),
        right(&["get"], "", &["configmaps", "secrets"]),
        // A connection comes by an address, whose Service has to be found.
        right(&["get", "list", "watch"], "", &["services", "pods"]),
        right(&["list", "watch"], "discovery.k8s.io", &["endpointslices"]),
        right(&["create"], "", &["pods/portforward"]),
    ];
    let space = Space::new(&cx).await?;
    let echo = Echo {
        name: "api",
        app: "api",
        ..Echo::default()
    };
    let api = service("api", "api", "{port: 80, targetPort: 8080}");
    let workload = env_from::workload("Deployment");
    let objects = [env_from::OBJECTS, &workload, &echo.pod(), &api];
    space.create(&objects.concat()).await?;
    space.ready("api", 1).await?;
    let account = cx.cluster.account(&space.name, RIGHTS).await?;
    for user in CommandUser::all_with(&cx, &account)? {
        let script = format!("echo $PASSWORD $NAMESPACE $MODE; {CURL} http://api/");
        let flags = ["--env-from", "deploy/web"];
        let ended = user.run(&cx, &flags, &["bash", "-c", &script]).await?;
        let canary = env_from::CANARY;
        let wanted = format!("{canary}-password {} prod\n", space.name);
        let is_there = ended.out.starts_with(&wanted) && ended.out.contains(r#""service":"api""#);
        anyhow::ensure!(is_there && ended.code == Some(0), "{ended:?}");
        anyhow::ensure!(!ended.err.contains(canary), "{}", ended.err);
    }
    Ok(())
}

const fn right(
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
) -> AccountRight {
    AccountRight {
        verbs,
        group,
        resources,
        everywhere: false,
    }
}

/// The user, the files, the environment and standard input are what they are without it.
pub(super) async fn as_if_it_were_not(cx: Context) -> anyhow::Result<()> {
    for mut user in CommandUser::all(&cx)? {
        // Which would be few for us.
        let limit = ["prlimit", "--nofile=512:"].map(str::to_owned);
        user.before.splice(0..0, limit);
        let script = "id -u; id -g; pwd; echo \"[$https_proxy$ALL_PROXY$_RJEM_MALLOC_CONF]\"; ulimit -Sn; cat; \
                      touch made; stat -c %u made";
        let mut command = user.command(&cx, &[], &["bash", "-c", script]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("https_proxy", "http://127.0.0.1:9")
            .env("ALL_PROXY", "http://127.0.0.1:9");
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        stdin.write_all(b"a line\n").await?;
        drop(stdin);
        let ended = IsolatedEnd::of(child.wait_with_output()).await?;
        let (uid, gid, dir) = (user.uid, user.gid, user.files.path().display());
        let wanted = format!("{uid}\n{gid}\n{dir}\n[]\n512\na line\n{uid}\n");
        anyhow::ensure!(ended.out == wanted && ended.code == Some(0), "{ended:?}");
        let made = std::fs::metadata(user.files.path().join("made"))?;
        anyhow::ensure!(made.uid() == uid, "made by {}", made.uid());
    }
    Ok(())
}

/// Each of these would be a way around.
pub(super) async fn the_way_out_is_closed(cx: Context) -> anyhow::Result<()> {
    let second = format!("unshare --user --net --map-root-user {CURL} http://productpage:9080/");
    let ways = [
        // The machine's namespaces, by a process that is in them.
        "nsenter --net=/proc/$OUTSIDE/ns/net true",
        "nsenter --net --target $OUTSIDE true",
        "nsenter --net=/proc/1/ns/net true",
        "nsenter --mount=/proc/1/ns/mnt true",
        "nsenter --user=/proc/1/ns/user true",
        "ls /proc/$OUTSIDE/root/",
        "readlink /proc/$OUTSIDE/fd/0",
        ": </proc/$OUTSIDE/fd/0",
        "cat /proc/$OUTSIDE/environ",
        // With every right in a namespace of one's own.
        "unshare --user --map-root-user nsenter --net=/proc/$OUTSIDE/ns/net true",
        "unshare --user --map-root-user ip link set lo down",
        // Which has less than this one.
        &second,
        // A cable to the machine's network.
        "ip link add inside0 type veth peer name outside0 netns $OUTSIDE",
        // No other interface is there, and none can lead out.
        "ip -brief link | grep -v '^lo ' | grep -w UP",
    ];
    // Fallback devices of tunnels are in every network, and down.
    let is_up = |name: &String| {
        let state = std::fs::read_to_string(format!("/sys/class/net/{name}/operstate"));
        state.is_ok_and(|state| state.trim() == "up")
    };
    let interface = std::fs::read_dir("/sys/class/net")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(is_up);
    let interface = interface.unwrap_or_else(|| "eth0".to_owned());
    let sockets = format!(
        "import socket as s\n\
         def tried(name, way):\n\
         \x20   try:\n\
         \x20       way()\n\
         \x20       print(name, 'open')\n\
         \x20   except OSError:\n\
         \x20       print(name, 'closed')\n\
         echo = b'\\x08\\0\\xf7\\xff\\0\\0\\0\\0'\n\
         tried('icmp', lambda: s.socket(s.AF_INET, s.SOCK_RAW, s.IPPROTO_ICMP).sendto(echo, ('192.0.2.1', 0)))\n\
         tried('ping', lambda: s.socket(s.AF_INET, s.SOCK_DGRAM, s.IPPROTO_ICMP).sendto(echo, ('192.0.2.1', 0)))\n\
         ip = b'\\x45\\0\\0\\x1c\\0\\0\\0\\0\\x40\\x11\\0\\0\\0\\0\\0\\0\\xc0\\0\\2\\1' + b'\\0\\x09' * 2 + b'\\0\\x08\\0\\0'\n\
         tried('raw', lambda: s.socket(s.AF_INET, s.SOCK_RAW, s.IPPROTO_RAW).sendto(ip, ('192.0.2.1', 0)))\n\
         tried('packet', lambda: s.socket(s.AF_PACKET, s.SOCK_RAW, 0x300).bind(('{interface}', 0)))\n\
         tried('device', lambda: s.socket().setsockopt(s.SOL_SOCKET, s.SO_BINDTODEVICE, b'{interface}'))\n"
    );
    for user in CommandUser::all(&cx)? {
        // A program that is not there would be as closed.
        user.script(&cx, "type -P nsenter && type -P unshare && type -P ip")
            .await?;
        for way in ways {
            let outside = std::process::id();
            let script = format!("OUTSIDE={outside}; {way} >&2 && echo open || echo closed");
            let said = user.script(&cx, &script).await?;
            anyhow::ensure!(said == "closed\n", "as {}: {way}: {said}", user.uid);
        }
        let ended = user.run(&cx, &[], &[PYTHON, "-c", &sockets]).await?;
        let closed = ended.out.matches(" closed\n").count();
        anyhow::ensure!(
            closed == 5 && ended.code == Some(0),
            "as {}: {ended:?}",
            user.uid
        );
    }
    // An abstract socket belongs to the network it was made in.
    let name = format!("kubevpn-test-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let connect = format!("import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}')");
    let outside = Command::new(PYTHON).args(["-c", &connect]).status();
    anyhow::ensure!(outside.await?.success(), "the socket is not there at all");
    for user in CommandUser::all(&cx)? {
        let ended = user.run(&cx, &[], &[PYTHON, "-c", &connect]).await?;
        ended.with(1, "ConnectionRefusedError")?;
    }
    Ok(())
}

/// In a user namespace that may have none below it, as nobody on the machine may where a setting says so.
pub(super) async fn where_it_cannot_be_had(cx: Context) -> anyhow::Result<()> {
    for user in CommandUser::all(&cx)? {
        let run = async |isolated: &str| {
            let script = format!(
                "echo 0 >/proc/sys/user/max_user_namespaces; \
                 exec {} run {isolated} --kubeconfig kubeconfig -- curl -sS http://productpage:9080/",
                user.kubevpn.display()
            );
            let mut words = user.before.clone();
            words.extend(["unshare", "--user", "--map-root-user", "bash", "-c"].map(str::to_owned));
            let mut command = Command::new(&words[0]);
            command
                .args(&words[1..])
                .arg(script)
                .current_dir(user.files.path())
                .env("HOME", user.files.path())
                .stdin(Stdio::null())
                .kill_on_drop(true);
            IsolatedEnd::of(command.output()).await
        };
        let refused = run("--isolated").await?;
        refused.with(60, "error: an isolated network cannot be made here: ")?;
        refused.with(60, "max_user_namespaces")?;
        refused.with(60, "  try: --isolated=auto")?;
        let fell_back = run("--isolated=auto").await?;
        fell_back.with(0, "not isolated, using proxy environment variables: ")?;
        anyhow::ensure!(
            fell_back.out.contains(r#""service":"productpage""#),
            "{fell_back:?}"
        );
    }
    Ok(())
}
