//! The clients.

use super::kits::Kit;

/// As the lines have them; replaced by what is really listened on.
pub(super) const SOCKS: &str = "127.0.0.1:1080";
pub(super) const HTTP: &str = "127.0.0.1:3128";
pub(super) const MIXED: &str = "127.0.0.1:8080";
/// To port 6379 of the Service `redis`.
pub(super) const FORWARD: &str = "127.0.0.1:6379";
/// That of the Service `reviews`.
pub(super) const CLUSTER_IP: &str = "10.96.0.7";

/// A program and one way to use it.
#[derive(Debug)]
pub struct Client {
    /// The program, or library, and the way.
    pub name: &'static str,
    /// Which port it is pointed at.
    pub listener: Listener,
    /// What it asks for.
    pub target: &'static str,
    /// What a person pastes.
    pub line: &'static str,
    /// What is run, where that is not a line for a shell.
    run: Option<&'static str>,
    pub(super) kit: Kit,
    /// It asks for what only [`Kit::Guests`] has.
    pub(super) guests: bool,
    /// Is in what it prints when it got through.
    pub(super) expect: &'static str,
}

impl Client {
    pub(super) fn command(&self) -> &'static str {
        self.run.unwrap_or(self.line)
    }
}

/// Which of the proxy's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// `--listen-socks`.
    Socks,
    /// `--listen-http`.
    Http,
    /// `--listen`.
    Mixed,
    /// `--forward`.
    Forward,
}

impl Listener {
    /// As the page names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Socks => "SOCKS",
            Self::Http => "HTTP",
            Self::Mixed => "mixed",
            Self::Forward => "forward",
        }
    }
}

/// The sample workload's answer.
const REVIEWS: &str = r#""service":"reviews""#;
const NAME: &str = "Service name";

const fn shell(
    name: &'static str,
    program: &'static str,
    listener: Listener,
    target: &'static str,
    line: &'static str,
) -> Client {
    Client {
        name,
        listener,
        target,
        line,
        run: None,
        kit: Kit::Machine(program),
        guests: false,
        expect: REVIEWS,
    }
}

const fn library(
    name: &'static str,
    kit: Kit,
    listener: Listener,
    line: &'static str,
    run: &'static str,
) -> Client {
    Client {
        name,
        listener,
        target: NAME,
        line,
        run: Some(run),
        kit,
        guests: false,
        expect: REVIEWS,
    }
}

/// A client of the guests.
const fn guest(
    name: &'static str,
    kit: Kit,
    listener: Listener,
    (target, expect): (&'static str, &'static str),
    line: &'static str,
    run: &'static str,
) -> Client {
    Client {
        name,
        listener,
        target,
        line,
        run: Some(run),
        kit,
        guests: true,
        expect,
    }
}

const GIT: (&str, &str) = ("Git over HTTP", "cloned from a Pod");
const GRPC: (&str, &str) = ("gRPC", "SERVING");
const REDIS: (&str, &str) = ("Redis", "PONG");

pub(super) const CLIENTS: &[Client] = &[
    shell("curl, socks5h", "curl", Listener::Socks, NAME,
        "curl -sS --proxy socks5h://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    shell("curl, socks5h, short name", "curl", Listener::Socks, "short name",
        "curl -sS --proxy socks5h://127.0.0.1:1080 http://reviews/"),
    shell("curl, socks5", "curl", Listener::Socks, "ClusterIP",
        "curl -sS --proxy socks5://127.0.0.1:1080 http://10.96.0.7/"),
    shell("curl, socks4a", "curl", Listener::Socks, NAME,
        "curl -sS --proxy socks4a://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    shell("curl, socks4", "curl", Listener::Socks, "ClusterIP",
        "curl -sS --proxy socks4://127.0.0.1:1080 http://10.96.0.7/"),
    shell("curl, ALL_PROXY", "curl", Listener::Socks, NAME,
        "ALL_PROXY=socks5h://127.0.0.1:1080 curl -sS http://reviews.default.svc.cluster.local/"),
    shell("curl, http", "curl", Listener::Http, NAME,
        "curl -sS --proxy http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    shell("curl, http, tunnel", "curl", Listener::Http, NAME,
        "curl -sS --proxytunnel --proxy http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    shell("curl, http_proxy", "curl", Listener::Http, NAME,
        "http_proxy=http://127.0.0.1:3128 curl -sS http://reviews.default.svc.cluster.local/"),
    Client {
        name: "curl, https over CONNECT",
        listener: Listener::Http,
        target: "API server's Service",
        line: "curl -sSk --proxy http://127.0.0.1:3128 https://kubernetes.default.svc.cluster.local/version",
        run: None,
        kit: Kit::Machine("curl"),
        guests: false,
        expect: "gitVersion",
    },
    Client {
        name: "curl, https over SOCKS",
        listener: Listener::Socks,
        target: "API server's Service",
        line: "curl -sSk --proxy socks5h://127.0.0.1:1080 https://kubernetes.default.svc.cluster.local/version",
        run: None,
        kit: Kit::Machine("curl"),
        guests: false,
        expect: "gitVersion",
    },
    shell("curl, socks5h", "curl", Listener::Mixed, NAME,
        "curl -sS --proxy socks5h://127.0.0.1:8080 http://reviews.default.svc.cluster.local/"),
    shell("curl, http", "curl", Listener::Mixed, NAME,
        "curl -sS --proxy http://127.0.0.1:8080 http://reviews.default.svc.cluster.local/"),
    shell("wget", "wget", Listener::Http, NAME,
        "http_proxy=http://127.0.0.1:3128 wget -qO- http://reviews.default.svc.cluster.local/"),
    Client {
        name: "nc (OpenBSD's), as in ssh's ProxyCommand",
        listener: Listener::Socks,
        target: "TCP, the server speaks first",
        line: "nc -X 5 -x 127.0.0.1:1080 multi.default.svc.cluster.local 25",
        // It stays for as long as the server does, which the cut ends.
        run: Some("$KITS/debian/bin/nc.openbsd -X 5 -x 127.0.0.1:1080 -w 3 multi.default.svc.cluster.local 25"),
        kit: Kit::Debian,
        guests: false,
        expect: "220 multi-",
    },
    Client {
        name: "nc (OpenBSD's), as in ssh's ProxyCommand",
        listener: Listener::Http,
        target: "TCP, the server speaks first",
        line: "nc -X connect -x 127.0.0.1:3128 multi.default.svc.cluster.local 25",
        run: Some("$KITS/debian/bin/nc.openbsd -X connect -x 127.0.0.1:3128 -w 3 multi.default.svc.cluster.local 25"),
        kit: Kit::Debian,
        guests: false,
        expect: "220 multi-",
    },
    library("proxychains4, curl", Kit::Debian, Listener::Socks,
        "proxychains4 curl -sS http://reviews.default.svc.cluster.local/ # in proxychains.conf: proxy_dns; [ProxyList] socks5 127.0.0.1 1080",
        "at=127.0.0.1:1080; printf 'proxy_dns\\nremote_dns_subnet 224\\n[ProxyList]\\nsocks5 %s %s\\n' ${at%:*} ${at#*:} >proxychains.conf
         $KITS/debian/usr/bin/proxychains4 -q -f $PWD/proxychains.conf curl -sS http://reviews.default.svc.cluster.local/"),
    library("Go net/http", Kit::Go, Listener::Http,
        "HTTP_PROXY=http://127.0.0.1:3128 HTTPS_PROXY=http://127.0.0.1:3128 ./program",
        "HTTP_PROXY=http://127.0.0.1:3128 $KITS/go-clients env http://reviews.default.svc.cluster.local/"),
    library("Go net/http", Kit::Go, Listener::Socks,
        "HTTP_PROXY=socks5://127.0.0.1:1080 HTTPS_PROXY=socks5://127.0.0.1:1080 ./program",
        "HTTP_PROXY=socks5://127.0.0.1:1080 $KITS/go-clients env http://reviews.default.svc.cluster.local/"),
    library("Go golang.org/x/net/proxy", Kit::Go, Listener::Socks,
        r#"proxy.SOCKS5("tcp", "127.0.0.1:1080", nil, proxy.Direct)"#,
        "$KITS/go-clients dialer 127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    library("Python requests", Kit::Python, Listener::Http,
        r#"requests.get(url, proxies={"http": "http://127.0.0.1:3128", "https": "http://127.0.0.1:3128"})"#,
        "$KITS/python/bin/python $SOURCES/python/via_requests.py http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    library("Python requests with PySocks", Kit::Python, Listener::Socks,
        r#"requests.get(url, proxies={"http": "socks5h://127.0.0.1:1080", "https": "socks5h://127.0.0.1:1080"})"#,
        "$KITS/python/bin/python $SOURCES/python/via_requests.py socks5h://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    library("Python httpx", Kit::Python, Listener::Http,
        r#"httpx.Client(proxy="http://127.0.0.1:3128")"#,
        "$KITS/python/bin/python $SOURCES/python/via_httpx.py http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    library("Python httpx", Kit::Python, Listener::Socks,
        r#"httpx.Client(proxy="socks5h://127.0.0.1:1080")"#,
        "$KITS/python/bin/python $SOURCES/python/via_httpx.py socks5h://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    library("Node undici", Kit::Node, Listener::Http,
        r#"request(url, { dispatcher: new ProxyAgent("http://127.0.0.1:3128") })"#,
        "node $KITS/node/via_undici.mjs http://127.0.0.1:3128 http://reviews.default.svc.cluster.local/"),
    library("Node socks-proxy-agent", Kit::Node, Listener::Socks,
        r#"http.get(url, { agent: new SocksProxyAgent("socks5h://127.0.0.1:1080") })"#,
        "node $KITS/node/via_socks.mjs socks5h://127.0.0.1:1080 http://reviews.default.svc.cluster.local/"),
    library("Node 24 fetch", Kit::Node, Listener::Http,
        "NODE_USE_ENV_PROXY=1 HTTP_PROXY=http://127.0.0.1:3128 node program.mjs",
        "NODE_USE_ENV_PROXY=1 HTTP_PROXY=http://127.0.0.1:3128 \
         $KITS/node/node_modules/node/bin/node $KITS/node/via_env.mjs http://reviews.default.svc.cluster.local/"),
    library("Java java.net.http", Kit::Java, Listener::Http,
        r#"HttpClient.newBuilder().proxy(ProxySelector.of(new InetSocketAddress("127.0.0.1", 3128)))"#,
        "at=127.0.0.1:3128; java -cp $KITS/java ViaHttp ${at%:*} ${at#*:} http://reviews.default.svc.cluster.local/"),
    library("Java Proxy.Type.SOCKS", Kit::Java, Listener::Socks,
        r#"new Socket(new Proxy(Proxy.Type.SOCKS, new InetSocketAddress("127.0.0.1", 1080))) // .connect(InetSocketAddress.createUnresolved(host, port))"#,
        "at=127.0.0.1:1080; java -cp $KITS/java ViaSocks ${at%:*} ${at#*:} reviews.default.svc.cluster.local 80"),
    library("Chromium", Kit::Machine("chromium-headless-shell"), Listener::Socks,
        "chromium --proxy-server=socks5://127.0.0.1:1080",
        "chromium-headless-shell --no-sandbox --proxy-server=socks5://127.0.0.1:1080 --dump-dom http://reviews.default.svc.cluster.local/"),
    library("Chromium", Kit::Machine("chromium-headless-shell"), Listener::Http,
        "chromium --proxy-server=http://127.0.0.1:3128",
        "chromium-headless-shell --no-sandbox --proxy-server=http://127.0.0.1:3128 --dump-dom http://reviews.default.svc.cluster.local/"),
    guest("git clone", Kit::Machine("git"), Listener::Http, GIT,
        "http_proxy=http://127.0.0.1:3128 git clone http://guest.default.svc.cluster.local/demo.git",
        "rm -rf demo; http_proxy=http://127.0.0.1:3128 git clone -q http://guest.default.svc.cluster.local/demo.git; cat demo/README"),
    guest("git clone", Kit::Machine("git"), Listener::Socks, GIT,
        "git -c http.proxy=socks5h://127.0.0.1:1080 clone http://guest.default.svc.cluster.local/demo.git",
        "rm -rf demo; git -c http.proxy=socks5h://127.0.0.1:1080 clone -q http://guest.default.svc.cluster.local/demo.git; cat demo/README"),
    guest("redis-cli", Kit::Debian, Listener::Forward, REDIS,
        "kubevpn proxy-out --forward 127.0.0.1:6379:redis:6379 & redis-cli -h 127.0.0.1 ping",
        "at=127.0.0.1:6379; LD_LIBRARY_PATH=$KITS/debian/usr/lib/x86_64-linux-gnu $KITS/debian/usr/bin/redis-cli -h ${at%:*} -p ${at#*:} ping"),
    guest("proxychains4, redis-cli", Kit::Debian, Listener::Socks, REDIS,
        "proxychains4 redis-cli -h redis.default.svc.cluster.local ping",
        "at=127.0.0.1:1080; printf 'proxy_dns\\nremote_dns_subnet 224\\n[ProxyList]\\nsocks5 %s %s\\n' ${at%:*} ${at#*:} >proxychains.conf
         $KITS/debian/usr/bin/proxychains4 -q -f $PWD/proxychains.conf \
         env LD_LIBRARY_PATH=$KITS/debian/usr/lib/x86_64-linux-gnu $KITS/debian/usr/bin/redis-cli -h redis.default.svc.cluster.local ping"),
    guest("Go google.golang.org/grpc", Kit::Go, Listener::Http, GRPC,
        "HTTPS_PROXY=http://127.0.0.1:3128 ./program",
        "HTTPS_PROXY=http://127.0.0.1:3128 $KITS/go-clients grpc-env guest.default.svc.cluster.local:50051"),
    guest("Go google.golang.org/grpc", Kit::Go, Listener::Socks, GRPC,
        r#"grpc.NewClient("passthrough:///"+target, grpc.WithContextDialer(…)) // with the dialer of golang.org/x/net/proxy"#,
        "$KITS/go-clients grpc-dialer 127.0.0.1:1080 guest.default.svc.cluster.local:50051"),
    guest("Python grpcio", Kit::Python, Listener::Http, GRPC,
        "grpc_proxy=http://127.0.0.1:3128 python program.py",
        "grpc_proxy=http://127.0.0.1:3128 $KITS/python/bin/python $SOURCES/python/via_grpc.py guest.default.svc.cluster.local:50051"),
    guest("proxychains4, Python grpcio", Kit::Python, Listener::Socks, GRPC,
        "GRPC_DNS_RESOLVER=native proxychains4 python program.py",
        "export GRPC_DNS_RESOLVER=native; at=127.0.0.1:1080; printf 'proxy_dns\\nremote_dns_subnet 224\\n[ProxyList]\\nsocks5 %s %s\\n' ${at%:*} ${at#*:} >proxychains.conf
         $KITS/debian/usr/bin/proxychains4 -q -f $PWD/proxychains.conf \
         $KITS/python/bin/python $SOURCES/python/via_grpc.py guest.default.svc.cluster.local:50051"),
];
