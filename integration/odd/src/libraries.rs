//! Real clients, each told of the proxy in the way it knows.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use tokio::process::Command;
use tokio::time::timeout;

use crate::peers::{install, ours};
use crate::row::OddRow;
use crate::server::OddServer;

/// How long a client may take; a JVM on a busy machine is slow to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the server is called behind our proxy, which alone knows the name.
pub(crate) const NAME: &str = "server.odd.test";

/// Debian's packages of small clients.
const PACKAGES: [(&str, &str); 12] = [
    ("curl", "curl"),
    ("wget", "wget"),
    ("git", "git"),
    ("/usr/lib/python3/dist-packages/urllib3", "python3-urllib3"),
    (
        "/usr/lib/python3/dist-packages/requests",
        "python3-requests",
    ),
    ("/usr/lib/python3/dist-packages/httpx", "python3-httpx"),
    ("/usr/lib/python3/dist-packages/aiohttp", "python3-aiohttp"),
    ("/usr/lib/python3/dist-packages/pip", "python3-pip"),
    ("ruby", "ruby"),
    ("php", "php-cli"),
    ("/usr/share/php8.2-curl", "php8.2-curl"),
    ("/usr/share/perl5/LWP", "libwww-perl"),
];

/// A program, and what it is to do: `$URL` is asked, and what it prints has to be what the server said.
#[derive(Clone, Debug)]
pub struct Library {
    pub(crate) client: &'static str,
    pub(crate) does: &'static str,
    /// A program, or a file that is there where the client is.
    pub(crate) needs: &'static str,
    pub(crate) script: &'static str,
    says: Vec<crate::server::Say>,
    prints: &'static str,
    /// What the server has to see in the first head or body.
    sees: &'static str,
}

/// How a client did; `None` for right.
#[derive(Clone, Debug)]
pub struct Ran {
    pub(crate) client: String,
    pub(crate) does: &'static str,
    pub(crate) direct: Option<String>,
    pub(crate) ours: Option<String>,
}

impl Ran {
    /// Whether it does not get through our proxy.
    pub fn fails(&self) -> bool {
        self.ours.is_some()
    }
}

impl Library {
    /// The client and what it does.
    pub fn name(&self) -> String {
        format!("{}: {}", self.client, self.does)
    }

    /// Whether it is on this machine.
    pub fn is_there(&self) -> bool {
        is_there(self.needs)
    }

    /// What has to be there for it.
    pub fn needs(&self) -> &'static str {
        self.needs
    }

    /// Runs it without and with our proxy.
    pub async fn run(&self) -> Result<Ran> {
        let proxy = ours().await?;
        Ok(Ran {
            client: self.client.into(),
            does: self.does,
            direct: self.run_on(None).await?,
            ours: self.run_on(Some(proxy)).await?,
        })
    }

    async fn run_on(&self, proxy: Option<SocketAddr>) -> Result<Option<String>> {
        let server = OddServer::start(self.says.clone()).await?;
        // Many clients go past their proxy to this machine.
        let name = if proxy.is_some() { NAME } else { "127.0.0.1" };
        let host = format!("{name}:{}", server.port);
        let mut command = Command::new("bash");
        command
            .args(["-c", self.script])
            .env("URL", format!("http://{host}/"))
            .env("HOST", &host)
            .env("HOME", std::env::temp_dir())
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .env_remove("no_proxy")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(proxy) = proxy {
            let url = format!("http://{proxy}");
            for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"] {
                command.env(name, &url);
            }
            command
                .env("PROXY", &url)
                .env("PROXY_HOST", proxy.ip().to_string())
                .env("PROXY_PORT", proxy.port().to_string());
        }
        let Ok(output) = timeout(PATIENCE, command.output()).await else {
            return Ok(Some(format!("no end within {PATIENCE:?}")));
        };
        let output = output?;
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if printed != self.prints {
            let last = String::from_utf8_lossy(&output.stderr);
            let last = last.lines().last().unwrap_or_default().to_owned();
            return Ok(Some(format!("`{printed}` {last}")));
        }
        let saw = server.saw();
        let first = saw.requests.first();
        let seen = first.map(|request| {
            let head = String::from_utf8_lossy(&request.head).into_owned();
            let via = head.contains("\r\nVia: ") || head.starts_with("CONNECT");
            (head + &String::from_utf8_lossy(&request.body), via)
        });
        let Some((seen, via)) = seen else {
            return Ok(Some("the server saw nothing".into()));
        };
        if !seen.contains(self.sees) {
            return Ok(Some(format!("the server did not see `{}`", self.sees)));
        }
        // A client that went past its proxy says nothing about it.
        match proxy.is_some() && !via && !self.script.contains("TUNNEL") {
            true => Ok(Some("went past the proxy".into())),
            false => Ok(None),
        }
    }
}

/// Installs small clients that are not there, where that is allowed.
pub fn install_libraries() {
    let missing = PACKAGES.iter().filter(|(needs, _)| !is_there(needs));
    install(missing.map(|(_, package)| *package));
}

fn is_there(needs: &str) -> bool {
    if needs.starts_with('/') {
        return Path::new(needs).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(needs).is_file())
}

fn library(
    client: &'static str,
    needs: &'static str,
    does: &'static str,
    script: &'static str,
) -> Library {
    let row = OddRow::new(does, "").says_with("Content-Length: 2\r\n");
    Library {
        client,
        does,
        needs,
        script,
        says: row.says,
        prints: "ok",
        sees: "HTTP/1.1",
    }
}

impl Library {
    fn says(mut self, answer: &str) -> Self {
        self.says = OddRow::new("", "").says(answer).says;
        self
    }

    fn says_next(mut self, answer: &str) -> Self {
        self.says.extend(OddRow::new("", "").says(answer).says);
        self
    }

    fn closes(mut self) -> Self {
        for say in &mut self.says {
            say.then = crate::server::Then::Close;
        }
        self
    }

    fn prints(mut self, text: &'static str) -> Self {
        self.prints = text;
        self
    }

    fn sees(mut self, text: &'static str) -> Self {
        self.sees = text;
        self
    }
}

/// All of them. Those of docs/clients.md stay there.
pub fn libraries() -> Vec<Library> {
    const CURL: &str = "curl";
    const PYTHON: &str = "python3";
    const CHUNKED: &str =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    const FOLDED: &str =
        "HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nX B: 3\r\nContent-Length : 2\r\n\r\nok";
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    vec![
        library("curl", CURL, "GET", "curl -s $URL"),
        library("curl", CURL, "HTTP/1.0", "curl -s --http1.0 $URL"),
        library("curl", CURL, "--compressed", "curl -s --compressed $URL").sees("Accept-Encoding: "),
        library("curl", CURL, "-T - (chunked)", "echo hello | curl -s -T - ${URL}up").sees("hello"),
        library("curl", CURL, "Expect: 100-continue", "echo hello | curl -s -H 'Expect: 100-continue' --data-binary @- $URL").sees("hello"),
        library("curl", CURL, "--proxytunnel", "# TUNNEL\ncurl -s ${PROXY:+--proxytunnel} $URL"),
        library("curl", CURL, "a folded answer", "curl -s $URL").says(FOLDED),
        library("curl", CURL, "103", "curl -s $URL").says(HINTS),
        library("curl", CURL, "names of fields", "curl -s -H 'SOAPAction: x' $URL").sees("\r\nSOAPAction: x\r\n"),
        library("curl", CURL, "a close-delimited answer", "curl -s $URL").says("HTTP/1.1 200 OK\r\n\r\nok").closes(),
        library("wget", "wget", "GET", "wget -qO- $URL"),
        library("git", "git", "ls-remote", "git ls-remote $URL 2>/dev/null | cut -f2")
            .says("HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\nContent-Length: 112\r\n\r\n001e# service=git-upload-pack\n0000004a95dcfa3633004da0049d3d0fa03f80589cbcaf31 refs/heads/main\0 agent=git/2\n0000")
            .prints("refs/heads/main"),
        library("Python http.client", PYTHON, "GET", "python3 -c 'import os, http.client as h, urllib.parse as u\nurl = os.environ[\"URL\"]; p = os.environ.get(\"PROXY\"); c = h.HTTPConnection(u.urlparse(p or url).netloc)\nc.request(\"GET\", url if p else \"/\"); print(c.getresponse().read().decode())'"),
        library("Python urllib", PYTHON, "GET", "python3 -c 'import os, urllib.request as r; print(r.urlopen(os.environ[\"URL\"]).read().decode())'"),
        library("Python urllib", PYTHON, "chunked answer", "python3 -c 'import os, urllib.request as r; print(r.urlopen(os.environ[\"URL\"]).read().decode())'").says(CHUNKED),
        library("Python urllib3", "/usr/lib/python3/dist-packages/urllib3", "GET", "/usr/bin/python3 -c 'import os, urllib3; p = os.environ.get(\"PROXY\"); m = urllib3.ProxyManager(p) if p else urllib3.PoolManager(); print(m.request(\"GET\", os.environ[\"URL\"]).data.decode())'"),
        library("Python requests", "/usr/lib/python3/dist-packages/requests", "GET", "/usr/bin/python3 -c 'import os, requests; print(requests.get(os.environ[\"URL\"]).text)'"),
        library("Python requests", "/usr/lib/python3/dist-packages/requests", "chunked POST", "/usr/bin/python3 -c 'import os, requests; print(requests.post(os.environ[\"URL\"], data=iter([b\"hel\", b\"lo\"])).text)'").sees("hello"),
        library("Python httpx", "/usr/lib/python3/dist-packages/httpx", "GET", "/usr/bin/python3 -c 'import os, httpx; print(httpx.get(os.environ[\"URL\"]).text)'"),
        library("Python aiohttp", "/usr/lib/python3/dist-packages/aiohttp", "GET", "/usr/bin/python3 -c 'import os, asyncio, aiohttp\nasync def f():\n  async with aiohttp.ClientSession(trust_env=True) as s:\n    async with s.get(os.environ[\"URL\"]) as r: print(await r.text())\nasyncio.run(f())'"),
        library("pip", "/usr/lib/python3/dist-packages/pip", "index versions", "/usr/bin/python3 -m pip index versions x --index-url $URL --trusted-host ${HOST%:*} 2>/dev/null | head -1")
            .says("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 40\r\n\r\n<a href=\"x-1.0.tar.gz\">x-1.0.tar.gz</a>\n")
            .prints("x (1.0)"),
        library("npm", "npm", "view", "npm view x version --registry $URL")
            .says("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 95\r\n\r\n{\"name\":\"x\",\"dist-tags\":{\"latest\":\"1.0.0\"},\"versions\":{\"1.0.0\":{\"name\":\"x\",\"version\":\"1.0.0\"}}}")
            .prints("1.0.0"),
        library("Ruby net/http", "ruby", "GET", "ruby -rnet/http -e 'u = URI(ENV[\"URL\"]); puts Net::HTTP.new(u.host, u.port, ENV[\"PROXY_HOST\"], ENV[\"PROXY_PORT\"]).get(\"/\").body'"),
        library("PHP curl", "/usr/share/php8.2-curl", "GET", "php -r '$c = curl_init(getenv(\"URL\")); curl_setopt($c, CURLOPT_RETURNTRANSFER, 1); echo curl_exec($c);'"),
        library("PHP streams", "php", "GET", "php -r '$p = getenv(\"PROXY_HOST\"); $o = $p ? [\"http\" => [\"proxy\" => \"tcp://$p:\" . getenv(\"PROXY_PORT\"), \"request_fulluri\" => true]] : []; echo file_get_contents(getenv(\"URL\"), false, stream_context_create($o));'"),
        library("Perl LWP", "/usr/share/perl5/LWP", "GET", "perl -MLWP::UserAgent -e '$u = LWP::UserAgent->new; $u->env_proxy; print $u->get($ENV{URL})->content'"),
        library("Node http", "node", "GET", "node -e 'const u = new URL(process.env.URL), p = process.env.PROXY_HOST; require(\"http\").get(p ? {host: p, port: process.env.PROXY_PORT, path: u.href, headers: {Host: u.host}} : u, r => r.pipe(process.stdout))'"),
        library("Java HttpURLConnection", "java", "GET", "cat >$HOME/U$$.java <<'E'\nimport java.net.*;\nclass U { public static void main(String[] a) throws Exception { System.out.println(new String(new URL(System.getenv(\"URL\")).openStream().readAllBytes())); } }\nE\njava ${PROXY:+-Dhttp.proxyHost=$PROXY_HOST -Dhttp.proxyPort=$PROXY_PORT} $HOME/U$$.java; rm -f $HOME/U$$.java"),
        library("Java HttpClient", "java", "GET", "cat >$HOME/C$$.java <<'E'\nimport java.net.*; import java.net.http.*;\nclass C { public static void main(String[] a) throws Exception { var b = HttpClient.newBuilder(); var p = System.getenv(\"PROXY_HOST\"); if (p != null) b.proxy(ProxySelector.of(new InetSocketAddress(p, Integer.parseInt(System.getenv(\"PROXY_PORT\"))))); System.out.println(b.build().send(HttpRequest.newBuilder(URI.create(System.getenv(\"URL\"))).build(), HttpResponse.BodyHandlers.ofString()).body()); } }\nE\njava $HOME/C$$.java; rm -f $HOME/C$$.java"),
        // Large ones, which run where they are.
        library("Docker CLI", "docker", "version", "docker -H tcp://$HOST version --format '{{.Server.Version}}'")
            .says("HTTP/1.1 200 OK\r\nApi-Version: 1.43\r\nContent-Type: application/json\r\nContent-Length: 110\r\n\r\n{\"Version\":\"ok\",\"ApiVersion\":\"1.43\",\"MinAPIVersion\":\"1.24\",\"Os\":\"linux\",\"Arch\":\"amd64\",\"Platform\":{\"Name\":\"\"}}"),
        library("Maven", "mvn", "a parent POM", MAVEN)
            .says("HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 145\r\n\r\n<project><modelVersion>4.0.0</modelVersion><groupId>g</groupId><artifactId>p</artifactId><version>1</version><packaging>pom</packaging></project>"),
        library("cargo", "cargo", "a sparse index", CARGO)
            .says("HTTP/1.1 200 OK\r\nContent-Length: 36\r\n\r\n{\"dl\":\"http://nowhere.odd.test:1/x\"}")
            .says_next("HTTP/1.1 200 OK\r\nContent-Length: 141\r\n\r\n{\"name\":\"x\",\"vers\":\"1.0.0\",\"deps\":[],\"cksum\":\"0000000000000000000000000000000000000000000000000000000000000000\",\"features\":{},\"yanked\":false}")
            .prints("version = \"1.0.0\""),
    ]
}

/// Without the settings of the machine, which may keep it from registries without TLS.
const MAVEN: &str = r#"d=$(mktemp -d) && cd "$d" || exit
cat >settings.xml <<E
<settings><localRepository>$d/repository</localRepository>
${PROXY:+<proxies><proxy><host>$PROXY_HOST</host><port>$PROXY_PORT</port></proxy></proxies>}</settings>
E
cat >pom.xml <<E
<project><modelVersion>4.0.0</modelVersion><artifactId>a</artifactId><packaging>pom</packaging>
<parent><groupId>g</groupId><artifactId>p</artifactId><version>1</version><relativePath/></parent>
<repositories><repository><id>odd</id><url>$URL</url><releases><checksumPolicy>ignore</checksumPolicy></releases></repository></repositories>
</project>
E
mvn -B -gs settings.xml -s settings.xml validate >&2 && echo ok
cd / && rm -rf "$d""#;

/// The cargo that runs the tests: one behind rustup looks for its settings in the home.
const CARGO: &str = r#"d=$(mktemp -d) && cd "$d" || exit
mkdir .cargo src && : >src/lib.rs
printf '[registries.odd]\nindex = "sparse+%s"\n' $URL >.cargo/config.toml
printf '[package]\nname = "a"\nedition = "2024"\n[dependencies]\nx = { version = "1", registry = "odd" }\n' >Cargo.toml
CARGO_HOME=$d/home ${CARGO:-cargo} generate-lockfile -q && grep -A1 '"x"' Cargo.lock | tail -1
cd / && rm -rf "$d""#;
