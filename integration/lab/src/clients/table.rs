//! The clients.

use super::kits::Kit;

/// As the lines have them; replaced by what is really listened on.
pub(super) const SOCKS: &str = "127.0.0.1:1080";
pub(super) const HTTP: &str = "127.0.0.1:3128";
pub(super) const MIXED: &str = "127.0.0.1:8080";
pub(super) const DNS: &str = "127.0.0.1:5353";
/// To port 6379 of the Service `redis`.
pub(super) const REDIS: &str = "127.0.0.1:6379";
/// To port 5432 of the Service `postgres`.
pub(super) const POSTGRES: &str = "127.0.0.1:5432";
/// That of the Service `reviews`.
pub(super) const CLUSTER_IP: &str = "10.96.0.7";

/// A program and one way to use it.
#[derive(Debug)]
pub struct TestedClient {
    /// The program, or library, and the way.
    pub name: &'static str,
    /// Which port it is pointed at.
    pub listener: ProxyPort,
    /// What it asks for.
    pub target: &'static str,
    /// What a person pastes.
    pub line: &'static str,
    /// What is run, where that is not a line for a shell.
    run: Option<&'static str>,
    pub(super) kits: &'static [Kit],
    /// It asks for what only [`Kit::Guests`] has.
    pub(super) guests: bool,
    /// Is in what it prints when it got through.
    pub(super) expect: &'static str,
}

impl TestedClient {
    /// What tells it from the others: name, listener, target.
    pub(super) fn key(&self) -> [&'static str; 3] {
        [self.name, self.listener.name(), self.target]
    }

    pub(super) fn command(&self) -> &'static str {
        self.run.unwrap_or(self.line)
    }
}

/// Which of the proxy's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyPort {
    /// `--listen-socks`.
    Socks,
    /// `--listen-http`.
    Http,
    /// `--listen`.
    Mixed,
    /// `--forward`.
    Forward,
    /// `--listen-socks`, and `--listen-dns` for the names.
    SocksDns,
    /// What `kubevpn run` starts.
    Run,
}

impl ProxyPort {
    /// As the page names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Socks => "SOCKS",
            Self::Http => "HTTP",
            Self::Mixed => "mixed",
            Self::Forward => "forward",
            Self::SocksDns => "SOCKS, DNS",
            Self::Run => "its own",
        }
    }
}

/// The sample workload's answer.
const REVIEWS: &str = r#""service":"reviews""#;
const NAME: &str = "Service name";

const fn shell(
    name: &'static str,
    kits: &'static [Kit],
    listener: ProxyPort,
    target: &'static str,
    line: &'static str,
) -> TestedClient {
    TestedClient {
        name,
        listener,
        target,
        line,
        run: None,
        kits,
        guests: false,
        expect: REVIEWS,
    }
}

const fn library(
    name: &'static str,
    kits: &'static [Kit],
    listener: ProxyPort,
    line: &'static str,
    run: &'static str,
) -> TestedClient {
    TestedClient {
        name,
        listener,
        target: NAME,
        line,
        run: Some(run),
        kits,
        guests: false,
        expect: REVIEWS,
    }
}

/// A client of the guests.
const fn guest(
    name: &'static str,
    kits: &'static [Kit],
    listener: ProxyPort,
    (target, expect): (&'static str, &'static str),
    line: &'static str,
    run: &'static str,
) -> TestedClient {
    TestedClient {
        name,
        listener,
        target,
        line,
        run: Some(run),
        kits,
        guests: true,
        expect,
    }
}

/// A client of the sample workload, and a proxy of its own.
const fn run(
    name: &'static str,
    kits: &'static [Kit],
    expect: &'static str,
    line: &'static str,
    run: &'static str,
) -> TestedClient {
    TestedClient {
        name,
        listener: ProxyPort::Run,
        target: "short name",
        line,
        run: Some(run),
        kits,
        guests: false,
        expect,
    }
}

/// psql's session outlives the Pod it was with: it says that it connects again, and the query after that is answered. What
/// is typed is in the transcript too, so that no answer is spelt there as it will be.
const RESTART: &str = r#"at=127.0.0.1:5432
export LD_LIBRARY_PATH=$KITS/postgres/usr/lib/x86_64-linux-gnu
script -qec "$KITS/postgres/usr/lib/postgresql/15/bin/psql -nXAt -P pager=off -h ${at%:*} -p ${at#*:} -U postgres" said >/dev/null <<'END'
select trim(pg_read_file('/etc/hostname'), E'\n') as old \gset
\setenv OLD :old
\! exec </dev/null; kubectl rollout restart deployment/postgres && kubectl rollout status deployment/postgres --timeout=50s && kubectl wait --for=delete pod/$OLD --timeout=30s
select 'lost';
select 'answered by ' || 'another Pod' where trim(pg_read_file('/etc/hostname'), E'\n') <> :'old';
\q
END
grep 'Attempting reset: Succeeded' said || { cat said >&2; exit 1; }
cat said"#;

const CURL: &[Kit] = &[Kit::Machine("curl")];
const CHROMIUM: &[Kit] = &[Kit::Machine("chromium")];

const GIT: (&str, &str) = ("Git over HTTP", "cloned from a Pod");
const GRPC: (&str, &str) = ("gRPC", "SERVING");
const PONG: (&str, &str) = ("Redis", "PONG");
const SELECT: (&str, &str) = ("PostgreSQL", "PostgreSQL 15");
const SSH: (&str, &str) = ("SSH", "ran in a Pod: uname -a");
const RESTARTED: (&str, &str) = ("PostgreSQL, restarted", "answered by another Pod");
const PARTS: (&str, &str) = (
    "page of an outside host and two Services",
    "part of guest.default.svc.cluster.local;part of guest.default;part of parts.default.svc;part of parts;\
     part of parts.default.svc.cluster.local.;part of outside.test;part of cluster.local.outside.test;\
     part of xcluster.local;part of svc;part of guest.default.test;part of 192.0.2.1;",
);

pub(super) const CLIENTS: &[TestedClient] = &[
    shell("curl, socks5h", CURL, ProxyPort::Socks, NAME,
        "curl -sS --proxy socks5h://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    shell("curl, socks5h, short name", CURL, ProxyPort::Socks, "short name",
        "curl -sS --proxy socks5h://127.0.0.1:1080 http://reviews/"),
    shell("curl, socks5", CURL, ProxyPort::Socks, "ClusterIP",
        "curl -sS --proxy socks5://127.0.0.1:1080 http://10.96.0.7/"),
    shell("curl, socks4a", CURL, ProxyPort::Socks, NAME,
        "curl -sS --proxy socks4a://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    shell("curl, socks4", CURL, ProxyPort::Socks, "ClusterIP",
        "curl -sS --proxy socks4://127.0.0.1:1080 http://10.96.0.7/"),
    shell("curl, ALL_PROXY", CURL, ProxyPort::Socks, NAME,
        "ALL_PROXY=socks5h://127.0.0.1:1080 curl -sS http://reviews.default.svc.cluster.local/"),
    shell("curl, http", CURL, ProxyPort::Http, NAME,
        "curl -sS --proxy http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    shell("curl, http, tunnel", CURL, ProxyPort::Http, NAME,
        "curl -sS --proxytunnel --proxy http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    shell("curl, http_proxy", CURL, ProxyPort::Http, NAME,
        "http_proxy=http://127.0.0.1:3128 curl -sS http://reviews.default.svc.cluster.local/"),
    TestedClient {
        name: "curl, https over CONNECT",
        listener: ProxyPort::Http,
        target: "API server's Service",
        line: "curl -sSk --proxy http://127.0.0.1:3128 https://kubernetes.default.svc.cluster.local/version",
        run: None,
        kits: CURL,
        guests: false,
        expect: "gitVersion",
    },
    TestedClient {
        name: "curl, https over SOCKS",
        listener: ProxyPort::Socks,
        target: "API server's Service",
        line: "curl -sSk --proxy socks5h://127.0.0.1:1080 https://kubernetes.default.svc.cluster.local/version",
        run: None,
        kits: CURL,
        guests: false,
        expect: "gitVersion",
    },
    shell("curl, socks5h", CURL, ProxyPort::Mixed, NAME,
        "curl -sS --proxy socks5h://127.0.0.1:8080 http://reviews.default.svc.cluster.local/"),
    shell("curl, http", CURL, ProxyPort::Mixed, NAME,
        "curl -sS --proxy http://127.0.0.1:8080 http://reviews.default.svc.cluster.local/"),
    shell("wget", &[Kit::Machine("wget")], ProxyPort::Http, NAME,
        "http_proxy=http://127.0.0.1:3128 wget -qO- http://reviews.default.svc.cluster.local/"),
    TestedClient {
        name: "nc (OpenBSD's), as in ssh's ProxyCommand",
        listener: ProxyPort::Socks,
        target: "TCP, the server speaks first",
        line: "nc -X 5 -x 127.0.0.1:1080 multi.default.svc.cluster.local 25",
        // It stays for as long as the server does, which the cut ends.
        run: Some("$KITS/debian/bin/nc.openbsd -X 5 -x 127.0.0.1:1080 -w 3 multi.default.svc.cluster.local 25"),
        kits: &[Kit::Debian],
        guests: false,
        expect: "220 multi-",
    },
    TestedClient {
        name: "nc (OpenBSD's), as in ssh's ProxyCommand",
        listener: ProxyPort::Http,
        target: "TCP, the server speaks first",
        line: "nc -X connect -x 127.0.0.1:3128 multi.default.svc.cluster.local 25",
        run: Some("$KITS/debian/bin/nc.openbsd -X connect -x 127.0.0.1:3128 -w 3 multi.default.svc.cluster.local 25"),
        kits: &[Kit::Debian],
        guests: false,
        expect: "220 multi-",
    },
    library("proxychains4, curl", &[Kit::Debian], ProxyPort::Socks,
        "proxychains4 curl -sS http://reviews.default.svc.cluster.local/ # in proxychains.conf: proxy_dns; [ProxyList] socks5 127.0.0.1 1080",
        "at=127.0.0.1:1080; printf 'proxy_dns\\nremote_dns_subnet 224\\n[ProxyList]\\nsocks5 %s %s\\n' ${at%:*} ${at#*:} >proxychains.conf
         $KITS/debian/usr/bin/proxychains4 -q -f $PWD/proxychains.conf curl -sS http://reviews.default.svc.cluster.local/"),
    library("Go net/http", &[Kit::Go], ProxyPort::Http,
        "HTTP_PROXY=http://127.0.0.1:3128 HTTPS_PROXY=http://127.0.0.1:3128 ./program",
        "HTTP_PROXY=http://127.0.0.1:3128 $KITS/go-clients env http://reviews.default.svc.cluster.local/"),
    library("Go net/http", &[Kit::Go], ProxyPort::Socks,
        "HTTP_PROXY=socks5://127.0.0.1:1080 HTTPS_PROXY=socks5://127.0.0.1:1080 ./program",
        "HTTP_PROXY=socks5://127.0.0.1:1080 $KITS/go-clients env http://reviews.default.svc.cluster.local/"),
    library("Go golang.org/x/net/proxy", &[Kit::Go], ProxyPort::Socks,
        r#"proxy.SOCKS5("tcp", "127.0.0.1:1080", nil, proxy.Direct)"#,
        "$KITS/go-clients dialer 127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    library("Python requests", &[Kit::Python], ProxyPort::Http,
        r#"requests.get(url, proxies={"http": "http://127.0.0.1:3128", "https": "http://127.0.0.1:3128"})"#,
        "$KITS/python/bin/python $SOURCES/python/via_requests.py http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    library("Python requests with PySocks", &[Kit::Python], ProxyPort::Socks,
        r#"requests.get(url, proxies={"http": "socks5h://127.0.0.1:1080", "https": "socks5h://127.0.0.1:1080"})"#,
        "$KITS/python/bin/python $SOURCES/python/via_requests.py socks5h://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    library("Python httpx", &[Kit::Python], ProxyPort::Http,
        r#"httpx.Client(proxy="http://127.0.0.1:3128")"#,
        "$KITS/python/bin/python $SOURCES/python/via_httpx.py http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    library("Python httpx", &[Kit::Python], ProxyPort::Socks,
        r#"httpx.Client(proxy="socks5h://127.0.0.1:1080")"#,
        "$KITS/python/bin/python $SOURCES/python/via_httpx.py socks5h://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    library("Node undici", &[Kit::Node], ProxyPort::Http,
        r#"request(url, { dispatcher: new ProxyAgent("http://127.0.0.1:3128") })"#,
        "$KITS/node/node_modules/node/bin/node $KITS/node/via_undici.mjs http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    library("Node socks-proxy-agent", &[Kit::Node], ProxyPort::Socks,
        r#"http.get(url, { agent: new SocksProxyAgent("socks5h://127.0.0.1:1080") })"#,
        "$KITS/node/node_modules/node/bin/node $KITS/node/via_socks.mjs socks5h://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    library("Node 24 fetch", &[Kit::Node], ProxyPort::Http,
        "NODE_USE_ENV_PROXY=1 HTTP_PROXY=http://127.0.0.1:3128 node program.mjs",
        "NODE_USE_ENV_PROXY=1 HTTP_PROXY=http://127.0.0.1:3128 \
         $KITS/node/node_modules/node/bin/node $KITS/node/via_env.mjs http://reviews.default.svc.cluster.local/"),
    library("Node axios", &[Kit::Node], ProxyPort::Http,
        "HTTP_PROXY=http://127.0.0.1:3128 node program.mjs",
        "HTTP_PROXY=http://127.0.0.1:3128 \
         $KITS/node/node_modules/node/bin/node $KITS/node/via_axios.mjs http://reviews.default.svc.cluster.local/"),
    TestedClient {
        name: "websocat",
        listener: ProxyPort::Socks,
        target: "WebSocket",
        line: "websocat --socks5 127.0.0.1:1080 ws://productpage.default.svc.cluster.local:9080/ws",
        run: Some("echo hello from a WebSocket | $KITS/python/bin/websocat --one-message --no-close \
                   --socks5 127.0.0.1:1080 ws://productpage.default.svc.cluster.local:9080/ws"),
        kits: &[Kit::Python],
        guests: false,
        expect: "hello from a WebSocket",
    },
    library("Java java.net.http", &[Kit::Java], ProxyPort::Http,
        r#"HttpClient.newBuilder().proxy(ProxySelector.of(new InetSocketAddress("127.0.0.1", 3128)))"#,
        "at=127.0.0.1:3128; java -cp $KITS/java ViaHttp ${at%:*} ${at#*:} http://reviews.default.svc.cluster.local/"),
    library("Java Proxy.Type.SOCKS", &[Kit::Java], ProxyPort::Socks,
        r#"new Socket(new Proxy(Proxy.Type.SOCKS, new InetSocketAddress("127.0.0.1", 1080))) // .connect(InetSocketAddress.createUnresolved(host, port))"#,
        "at=127.0.0.1:1080; java -cp $KITS/java ViaSocks ${at%:*} ${at#*:} reviews.default.svc.cluster.local 80"),
    library("curl, socks5, name resolved here", CURL, ProxyPort::SocksDns,
        "curl -sS --proxy socks5://127.0.0.1:1080 http://reviews.default.svc.cluster.local/ # the machine asks --listen-dns for names",
        "at=127.0.0.1:5353; echo nameserver ${at%:*} >resolv.conf; unshare --mount sh -ec 'mount --bind resolv.conf /etc/resolv.conf
         curl -sS --proxy socks5://127.0.0.1:1080 http://reviews.default.svc.cluster.local/'"),
    library("Java Proxy.Type.SOCKS, name resolved here", &[Kit::Java], ProxyPort::SocksDns,
        "new Socket(new Proxy(Proxy.Type.SOCKS, …)) // .connect(new InetSocketAddress(host, port)); the machine asks --listen-dns for names",
        "at=127.0.0.1:5353; echo nameserver ${at%:*} >resolv.conf; unshare --mount sh -ec 'mount --bind resolv.conf /etc/resolv.conf
         at=127.0.0.1:1080; java -cp $KITS/java ViaSocks ${at%:*} ${at#*:} reviews.default.svc.cluster.local 80 here'"),
    library("Chromium", CHROMIUM, ProxyPort::Socks,
        "chromium --proxy-server=socks5://127.0.0.1:1080",
        "chromium --headless --no-sandbox --disable-background-networking --proxy-server=socks5://127.0.0.1:1080 --dump-dom http://reviews.default.svc.cluster.local/"),
    library("Chromium", CHROMIUM, ProxyPort::Http,
        "chromium --proxy-server=http://127.0.0.1:3128",
        "chromium --headless --no-sandbox --disable-background-networking --proxy-server=http://127.0.0.1:3128 --dump-dom http://reviews.default.svc.cluster.local/"),
    guest("Chromium, PAC", &[Kit::Machine("chromium"), Kit::Go], ProxyPort::Http, PARTS,
        "chromium --proxy-pac-url=http://127.0.0.1:3128/proxy.pac",
        "$KITS/go-clients page sh -c 'chromium --headless --no-sandbox --disable-background-networking --proxy-pac-url=http://127.0.0.1:3128/proxy.pac \
         --host-resolver-rules=\"MAP * 127.0.0.1\" --dump-dom http://outside.test:$PORT/'"),
    guest("git clone", &[Kit::Machine("git")], ProxyPort::Http, GIT,
        "http_proxy=http://127.0.0.1:3128 git clone http://guest.default.svc.cluster.local/demo.git",
        "rm -rf demo; http_proxy=http://127.0.0.1:3128 git clone -q http://guest.default.svc.cluster.local/demo.git; cat demo/README"),
    guest("git clone", &[Kit::Machine("git")], ProxyPort::Socks, GIT,
        "git -c http.proxy=socks5h://127.0.0.1:1080 clone http://guest.default.svc.cluster.local/demo.git",
        "rm -rf demo; git -c http.proxy=socks5h://127.0.0.1:1080 clone -q http://guest.default.svc.cluster.local/demo.git; cat demo/README"),
    guest("ssh, nc as its ProxyCommand", &[Kit::Machine("ssh")], ProxyPort::Socks, SSH,
        "ssh -o ProxyCommand='nc -X 5 -x 127.0.0.1:1080 %h %p' guest.default.svc.cluster.local uname -a",
        "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o ProxyCommand=\"$KITS/debian/bin/nc.openbsd -X 5 -x 127.0.0.1:1080 %h %p\" guest@guest.default.svc.cluster.local uname -a"),
    guest("ssh, nc as its ProxyCommand", &[Kit::Machine("ssh")], ProxyPort::Http, SSH,
        "ssh -o ProxyCommand='nc -X connect -x 127.0.0.1:3128 %h %p' guest.default.svc.cluster.local uname -a",
        "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o ProxyCommand=\"$KITS/debian/bin/nc.openbsd -X connect -x 127.0.0.1:3128 %h %p\" guest@guest.default.svc.cluster.local uname -a"),
    guest("redis-cli", &[Kit::Debian], ProxyPort::Forward, PONG,
        "kubevpn proxy-out --forward 127.0.0.1:6379:redis:6379 & redis-cli -h 127.0.0.1 ping",
        "at=127.0.0.1:6379; LD_LIBRARY_PATH=$KITS/debian/usr/lib/x86_64-linux-gnu $KITS/debian/usr/bin/redis-cli -h ${at%:*} -p ${at#*:} ping"),
    guest("proxychains4, redis-cli", &[Kit::Debian], ProxyPort::Socks, PONG,
        "proxychains4 redis-cli -h redis.default.svc.cluster.local ping",
        "at=127.0.0.1:1080; printf 'proxy_dns\\nremote_dns_subnet 224\\n[ProxyList]\\nsocks5 %s %s\\n' ${at%:*} ${at#*:} >proxychains.conf
         $KITS/debian/usr/bin/proxychains4 -q -f $PWD/proxychains.conf \
         env LD_LIBRARY_PATH=$KITS/debian/usr/lib/x86_64-linux-gnu $KITS/debian/usr/bin/redis-cli -h redis.default.svc.cluster.local ping"),
    guest("psql", &[Kit::Postgres], ProxyPort::Forward, SELECT,
        "kubevpn proxy-out --forward 127.0.0.1:5432:postgres:5432 & psql -h 127.0.0.1 -U postgres -c 'select version()'",
        "at=127.0.0.1:5432; LD_LIBRARY_PATH=$KITS/postgres/usr/lib/x86_64-linux-gnu \
         $KITS/postgres/usr/lib/postgresql/15/bin/psql -h ${at%:*} -p ${at#*:} -U postgres -c 'select version()'"),
    guest("psql, through a rolling restart", &[Kit::Postgres], ProxyPort::Forward, RESTARTED,
        "kubectl rollout restart deployment/postgres # psql says: Attempting reset: Succeeded; the next query works",
        RESTART),
    guest("proxychains4, psql", &[Kit::Postgres], ProxyPort::Socks, SELECT,
        "proxychains4 psql -h postgres.default.svc.cluster.local -U postgres -c 'select version()'",
        "at=127.0.0.1:1080; printf 'proxy_dns\\nremote_dns_subnet 224\\n[ProxyList]\\nsocks5 %s %s\\n' ${at%:*} ${at#*:} >proxychains.conf
         $KITS/debian/usr/bin/proxychains4 -q -f $PWD/proxychains.conf \
         env LD_LIBRARY_PATH=$KITS/postgres/usr/lib/x86_64-linux-gnu \
         $KITS/postgres/usr/lib/postgresql/15/bin/psql -h postgres.default.svc.cluster.local -U postgres -c 'select version()'"),
    guest("Go google.golang.org/grpc", &[Kit::Go], ProxyPort::Http, GRPC,
        "HTTPS_PROXY=http://127.0.0.1:3128 ./program",
        "HTTPS_PROXY=http://127.0.0.1:3128 $KITS/go-clients grpc-env guest.default.svc.cluster.local:50051"),
    guest("Go google.golang.org/grpc", &[Kit::Go], ProxyPort::Socks, GRPC,
        r#"grpc.NewClient("passthrough:///"+target, grpc.WithContextDialer(…)) // with the dialer of golang.org/x/net/proxy"#,
        "$KITS/go-clients grpc-dialer 127.0.0.1:1080 guest.default.svc.cluster.local:50051"),
    guest("grpcurl", &[Kit::Go], ProxyPort::Http, GRPC,
        "HTTPS_PROXY=http://127.0.0.1:3128 grpcurl -plaintext -proto health.proto guest.default.svc.cluster.local:50051 grpc.health.v1.Health/Check",
        "HTTPS_PROXY=http://127.0.0.1:3128 $KITS/grpcurl -plaintext -max-time 20 -import-path $SOURCES/go -proto health.proto \
         guest.default.svc.cluster.local:50051 grpc.health.v1.Health/Check"),
    guest("Python grpcio", &[Kit::Python], ProxyPort::Http, GRPC,
        "grpc_proxy=http://127.0.0.1:3128 python program.py",
        "grpc_proxy=http://127.0.0.1:3128 $KITS/python/bin/python $SOURCES/python/via_grpc.py guest.default.svc.cluster.local:50051"),
    guest("proxychains4, Python grpcio", &[Kit::Python], ProxyPort::Socks, GRPC,
        "GRPC_DNS_RESOLVER=native proxychains4 python program.py",
        "export GRPC_DNS_RESOLVER=native; at=127.0.0.1:1080; printf 'proxy_dns\\nremote_dns_subnet 224\\n[ProxyList]\\nsocks5 %s %s\\n' ${at%:*} ${at#*:} >proxychains.conf
         $KITS/debian/usr/bin/proxychains4 -q -f $PWD/proxychains.conf \
         $KITS/python/bin/python $SOURCES/python/via_grpc.py guest.default.svc.cluster.local:50051"),
    guest("ssh, kubevpn nc as its ProxyCommand", &[Kit::Machine("ssh")], ProxyPort::Run, SSH,
        "ssh -o ProxyCommand='kubevpn nc %h %p' guest.default.svc.cluster.local uname -a",
        "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o ProxyCommand='kubevpn nc %h %p' guest@guest.default.svc.cluster.local uname -a"),
    guest("kubevpn run --forward, psql", &[Kit::Postgres], ProxyPort::Run, SELECT,
        "kubevpn run --forward 0:postgres:5432 -- psql -h localhost -p {} -U postgres -c 'select version()'",
        "kubevpn run --forward 0:postgres:5432 -- env LD_LIBRARY_PATH=$KITS/postgres/usr/lib/x86_64-linux-gnu \
         $KITS/postgres/usr/lib/postgresql/15/bin/psql -h localhost -p {} -U postgres -c 'select version()'"),
    run("kubectl kubevpn", &[Kit::Machine("curl")], REVIEWS,
        "kubectl kubevpn run -- curl -sS http://reviews/",
        "mkdir -p plugin; ln -sf \"$(command -v kubevpn)\" plugin/kubectl-kubevpn
         PATH=$PWD/plugin:$PATH kubectl kubevpn run -- curl -sS http://reviews/"),
    run("kubectl kubevpn, completed", &[Kit::Machine("sh")], "productpage\tport 9080\n:4",
        "kubectl kubevpn nc produ<Tab>",
        "mkdir -p plugin; for name in kubectl-kubevpn kubectl_complete-kubevpn; do ln -sf \"$(command -v kubevpn)\" plugin/$name; done
         PATH=$PWD/plugin:$PATH kubectl __complete kubevpn nc produ"),
    run("kubevpn open, Chromium", CHROMIUM, REVIEWS,
        "kubevpn open reviews # headless here: -- --headless --dump-dom",
        "BROWSER=chromium kubevpn open reviews -- --headless --no-sandbox --dump-dom"),
    run("kubevpn run, curl", CURL, REVIEWS,
        "kubevpn run -- curl -sS http://reviews/",
        "kubevpn run -- curl -sS http://reviews/"),
    run("kubevpn run, Go net/http", &[Kit::Go], REVIEWS,
        "kubevpn run -- ./program",
        "kubevpn run -- $KITS/go-clients env http://reviews/"),
    run("kubevpn run, Python requests", &[Kit::Python], REVIEWS,
        r#"kubevpn run -- python -c 'import requests; print(requests.get("http://reviews/").text)'"#,
        r#"kubevpn run -- $KITS/python/bin/python -c 'import requests; print(requests.get("http://reviews/").text)'"#),
    run("kubevpn run, Python httpx", &[Kit::Python], REVIEWS,
        r#"kubevpn run -- python -c 'import httpx; print(httpx.get("http://reviews/").text)'"#,
        r#"kubevpn run -- $KITS/python/bin/python -c 'import httpx; print(httpx.get("http://reviews/").text)'"#),
    run("kubevpn run, Python openai", &[Kit::Python], REVIEWS,
        "kubevpn run -- python program.py",
        "kubevpn run -- $KITS/python/bin/python $SOURCES/python/via_openai.py http://reviews/"),
    run("kubevpn run, Python gradio", &[Kit::Python], REVIEWS,
        "kubevpn run -- python program.py",
        "GRADIO_ANALYTICS_ENABLED=False kubevpn run -- $KITS/python/bin/python $SOURCES/python/via_gradio.py http://reviews/"),
    run("kubevpn run, Node 24 fetch", &[Kit::Node], REVIEWS,
        "kubevpn run -- node program.mjs",
        "kubevpn run -- $KITS/node/node_modules/node/bin/node $KITS/node/via_env.mjs http://reviews/"),
    run("kubevpn run, Java java.net.http and URL", &[Kit::Java], REVIEWS,
        "kubevpn run -- java Program",
        "kubevpn run -- java -cp $KITS/java ViaSettings http://reviews/"),
    run("kubevpn run, kubectl", &[Kit::Machine("sh")], "service/reviews",
        "kubevpn run -- kubectl get service reviews -o name",
        "kubevpn run -- kubectl get service reviews -o name"),
];
