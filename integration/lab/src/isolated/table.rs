//! The programs.

use crate::clients::kits::Kit;

/// A program and what it does.
#[derive(Debug)]
pub struct IsolatedProgram {
    /// The program, or library.
    pub name: &'static str,
    /// What is run, by a shell. `$IPV4` and `$IPV6` are ClusterIPs, `$PORT` a published port.
    pub line: &'static str,
    /// Flags of an isolated run.
    pub(super) flags: &'static [&'static str],
    pub(super) kits: &'static [Kit],
    /// It asks for what only [`Kit::Guests`] has.
    pub(super) guests: bool,
    /// Is in what it prints when it got through.
    pub(super) expect: &'static str,
    /// Whether it is to get through when isolated.
    pub works: bool,
}

const fn program(
    name: &'static str,
    kits: &'static [Kit],
    expect: &'static str,
    line: &'static str,
) -> IsolatedProgram {
    IsolatedProgram {
        name,
        line,
        flags: &[],
        kits,
        guests: false,
        expect,
        works: true,
    }
}

const fn guest(
    name: &'static str,
    kits: &'static [Kit],
    expect: &'static str,
    line: &'static str,
) -> IsolatedProgram {
    IsolatedProgram {
        guests: true,
        ..program(name, kits, expect, line)
    }
}

const fn hopeless(
    name: &'static str,
    kits: &'static [Kit],
    expect: &'static str,
    line: &'static str,
) -> IsolatedProgram {
    IsolatedProgram {
        works: false,
        ..program(name, kits, expect, line)
    }
}

const DEBIAN: &[Kit] = &[Kit::Programs];
const NODE: &[Kit] = &[Kit::Node];
const PYTHON: &[Kit] = &[Kit::Python];
const GO: &[Kit] = &[Kit::Go];
const JAVA: &[Kit] = &[Kit::Java];

/// The sample workload's answer.
const REVIEWS: &str = r#""service":"reviews""#;
/// The first line of a server that speaks first.
const GREETING: &str = "220 multi-";

#[rustfmt::skip]
pub(super) const PROGRAMS: &[IsolatedProgram] = &[
    program("curl", DEBIAN, REVIEWS, "curl -sS http://reviews/"),
    program("wget", &[Kit::Machine("wget")], REVIEWS, "wget -qO- http://reviews/"),
    program("wget of BusyBox", DEBIAN, REVIEWS, "busybox wget -qO- http://reviews/"),
    program("aria2c", DEBIAN, REVIEWS, "aria2c -q --allow-overwrite=true -o got http://reviews/; cat got"),
    program("HTTPie", DEBIAN, REVIEWS, "http --ignore-stdin --body http://reviews/ | tr -d ' '"),
    program("lftp", DEBIAN, REVIEWS, "lftp -c 'set net:max-retries 1; cat http://reviews/'"),
    program("lynx", DEBIAN, REVIEWS, "lynx -source http://reviews/"),
    program("w3m", DEBIAN, REVIEWS, "w3m -dump_source http://reviews/"),
    program("links", DEBIAN, REVIEWS, "links -source http://reviews/"),
    program("Chromium", &[Kit::Machine("chromium")], REVIEWS,
        "chromium --headless --no-sandbox --disable-background-networking --dump-dom http://reviews/"),
    program("ab", DEBIAN, "Failed requests:        0", "ab -n 20 -c 4 http://reviews/"),
    program("hey", DEBIAN, "[200]", "hey -n 100 -c 4 http://reviews/"),
    program("websocat", PYTHON, "hello from a WebSocket",
        "echo hello from a WebSocket | $KITS/python/bin/websocat --one-message --no-close ws://productpage:9080/ws"),
    guest("git, HTTP", DEBIAN, "cloned from a Pod", "rm -rf demo; git clone -q http://guest/demo.git; cat demo/README"),
    guest("ssh", &[Kit::Machine("ssh")], "ran in a Pod: uname -a",
        "ssh -F none -o ConnectTimeout=15 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null guest@guest uname -a"),
    guest("psql", &[Kit::Postgres], "PostgreSQL 15",
        "LD_LIBRARY_PATH=$KITS/postgres/usr/lib/x86_64-linux-gnu $KITS/postgres/usr/lib/postgresql/15/bin/psql \
         -h postgres -U postgres -c 'select version()'"),
    guest("pg_dump", &[Kit::Postgres], "PostgreSQL database dump complete",
        "LD_LIBRARY_PATH=$KITS/postgres/usr/lib/x86_64-linux-gnu $KITS/postgres/usr/lib/postgresql/15/bin/pg_dump \
         -h postgres -U postgres --schema-only postgres"),
    guest("redis-cli", &[Kit::Debian], "PONG",
        "LD_LIBRARY_PATH=$KITS/debian/usr/lib/x86_64-linux-gnu $KITS/debian/usr/bin/redis-cli -h redis ping"),
    guest("grpcurl", GO, "SERVING",
        "$KITS/grpcurl -plaintext -max-time 15 -import-path $SOURCES/go -proto health.proto guest:50051 grpc.health.v1.Health/Check"),
    program("nc of OpenBSD", &[Kit::Debian], GREETING, "$KITS/debian/bin/nc.openbsd -w 5 multi 25"),
    program("ncat", DEBIAN, GREETING, "ncat --recv-only -i 2 multi 25 || true"),
    program("socat", DEBIAN, GREETING, "socat -u -T 2 TCP:multi:25 -"),
    program("bash, /dev/tcp", DEBIAN, GREETING, "bash -c 'exec 3<>/dev/tcp/multi/25; head -n 1 <&3'"),
    program("openssl s_client", &[Kit::Machine("openssl")], "BEGIN CERTIFICATE",
        "echo | openssl s_client -connect kubernetes.default.svc:443 2>/dev/null"),
    program("Go net/http, static", GO, REVIEWS, "$KITS/go-clients env http://reviews/"),
    program("Go net.Dial, static", GO, GREETING, "$KITS/go-clients isolated dial multi:25"),
    guest("Go gRPC, static", GO, "SERVING", "$KITS/go-clients grpc-env guest:50051"),
    program("Java java.net.http, URL", JAVA, REVIEWS, "java -cp $KITS/java ViaSettings http://reviews/"),
    program("Java Socket", JAVA, GREETING, "java -cp $KITS/java Direct multi 25"),
    program("Node fetch", NODE, REVIEWS, "$KITS/node/node_modules/node/bin/node $KITS/node/via_env.mjs http://reviews/"),
    program("Node http.get", NODE, REVIEWS,
        "$KITS/node/node_modules/node/bin/node -e 'http.get(\"http://reviews/\", r => r.pipe(process.stdout))'"),
    program("Node axios", NODE, REVIEWS, "$KITS/node/node_modules/node/bin/node $KITS/node/via_axios.mjs http://reviews/"),
    program("Node net.connect", NODE, GREETING,
        "$KITS/node/node_modules/node/bin/node -e 'const s = net.connect(25, \"multi\"); s.once(\"data\", d => { console.log(`${d}`); s.destroy() })'"),
    program("Python urllib", PYTHON, REVIEWS,
        "$KITS/python/bin/python -c 'import urllib.request as r; print(r.urlopen(\"http://reviews/\").read().decode())'"),
    program("Python requests", PYTHON, REVIEWS,
        "$KITS/python/bin/python -c 'import requests; print(requests.get(\"http://reviews/\").text)'"),
    program("Python httpx", PYTHON, REVIEWS,
        "$KITS/python/bin/python -c 'import httpx; print(httpx.get(\"http://reviews/\").text)'"),
    program("Python http.client", PYTHON, REVIEWS,
        "$KITS/python/bin/python -c 'import http.client as h; c = h.HTTPConnection(\"reviews\"); c.request(\"GET\", \"/\"); print(c.getresponse().read().decode())'"),
    program("Python asyncio", PYTHON, GREETING,
        "$KITS/python/bin/python -c 'import asyncio as a\nasync def main():\n    r, w = await a.open_connection(\"multi\", 25)\n    print((await r.readline()).decode())\na.run(main())'"),
    guest("Python grpcio", PYTHON, "SERVING", "$KITS/python/bin/python $SOURCES/python/via_grpc.py guest:50051"),
    program("Perl LWP", DEBIAN, REVIEWS, "lwp-request http://reviews/"),
    program("Perl IO::Socket", DEBIAN, GREETING,
        "perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(\"multi:25\")->getline'"),
    program("Ruby Net::HTTP", DEBIAN, REVIEWS, "ruby -rnet/http -e 'print Net::HTTP.get(URI(\"http://reviews/\"))'"),
    program("Ruby TCPSocket", DEBIAN, GREETING, "ruby -rsocket -e 'print TCPSocket.new(\"multi\", 25).gets'"),
    program("PHP file_get_contents", DEBIAN, REVIEWS, "php -r 'echo file_get_contents(\"http://reviews/\");'"),
    program("Tcl http", DEBIAN, REVIEWS,
        "echo 'package require http; puts [http::data [http::geturl http://reviews/]]' | tclsh"),
    program("getent, of the C library", DEBIAN, "STREAM reviews", "getent ahosts reviews"),
    program("dig @8.8.8.8", DEBIAN, "$IPV4", "dig +short +time=3 +tries=1 @8.8.8.8 reviews.default.svc.cluster.local"),
    program("host", DEBIAN, "has address", "host -W 3 reviews"),
    program("drill", DEBIAN, "NOERROR", "drill reviews.default.svc.cluster.local @198.18.0.1"),
    program("kubectl, kubernetes.default.svc", DEBIAN, "service/reviews",
        "kubectl --server https://kubernetes.default.svc get service reviews -o name"),
    hopeless("kubectl, the kubeconfig's address", DEBIAN, "service/reviews", "kubectl get service reviews -o name"),
    hopeless("ping", DEBIAN, "1 received", "ping -c 1 -W 2 reviews"),
];

/// What no proxy has a counterpart for.
#[rustfmt::skip]
pub(super) const SHOWS: &[IsolatedProgram] = &[
    program("an IPv4 address", DEBIAN, REVIEWS, "curl -sS http://$IPV4/"),
    program("an IPv6 address", DEBIAN, "\"service\"", "curl -sS 'http://[$IPV6]:9080/'"),
    program("getaddrinfo with a search domain", PYTHON, "found $IPV4",
        "$KITS/python/bin/python -c 'import socket; print(\"found\", socket.getaddrinfo(\"reviews.default\", 80)[0][4][0])'"),
    program("Go's resolver", GO, "found [$IPV4]", "$KITS/go-clients isolated lookup reviews"),
    program("half-close", GO, "slept 1500", "$KITS/go-clients isolated half-close reviews:80"),
    program("reset", GO, "reset: true", "$KITS/go-clients isolated reset multi:9999"),
    program("UDP", GO, "UDP is refused in", "$KITS/go-clients isolated udp 192.0.2.1:443"),
    program("10,000 connections", GO, "10000 connections echoed",
        "ulimit -n $(ulimit -Hn); $KITS/go-clients isolated many multi:7007 10000 500"),
    program("1 GiB to the client", DEBIAN, "1073741824 bytes",
        "curl -sS -o /dev/null -w '%{size_download} bytes in %{time_total} s\n' 'http://productpage:9080/bytes?n=1073741824'"),
    program("1 GiB to the Pod", DEBIAN, "1073741824\n",
        "head -c 1073741824 /dev/zero | curl -sS -T - -w '%{size_upload} bytes, in chunks, in %{time_total} s\n' http://productpage:9080/sink"),
    IsolatedProgram {
        flags: &["--publish", "$PORT:8000"],
        ..program("a server inside, published", PYTHON, "Directory listing",
            "$KITS/python/bin/python -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1 & \
             curl -sS --retry 30 --retry-delay 1 --retry-all-errors http://host.kubevpn.internal:$PORT/ 2>/dev/null; kill $!")
    },
];
