//! The hops: how each is configured, how it is used, and what has to come of it.

use std::time::Duration;

use super::gateway::Does;

/// One way to the API server.
#[derive(Debug)]
pub struct Hop {
    /// Program and configuration, in a few words.
    pub name: &'static str,
    pub(super) via: HopVia,
    pub(super) to: To,
    pub(super) third: Option<Third>,
    /// The transport that connections take, or words of the sentence that refuses them.
    pub(super) how: Result<&'static str, &'static str>,
}

/// The third connection, for hops that limit connections in time.
#[derive(Debug, Clone, Copy)]
pub(super) enum Third {
    /// After the hop has cut a silent one; its limit is this.
    AfterCut(Duration),
    /// A request that is answered after this long, which is longer than the hop's limit on silence.
    Silent(Duration),
}

/// What stands in between.
#[derive(Debug)]
pub(super) enum HopVia {
    /// Programs of Debian, the last of which listens at PORT.
    Debian(&'static DebianPackages, &'static [HopProgram]),
    /// The lab's own gateway: plain HTTP, one request a connection.
    Gateway(Does),
}

/// Debian packages that are unpacked together.
#[derive(Debug)]
pub(super) struct DebianPackages {
    /// Of the directory.
    pub(super) name: &'static str,
    pub(super) packages: &'static [&'static str],
}

/// A command line and its configuration. In all of it, these words are replaced: ROOT (the unpacked packages), DIR (an
/// empty directory), PORT and PORT2 (free ports), API (address and port of the API server), PKI (the lab's certificates).
#[derive(Debug)]
pub(super) struct HopProgram {
    pub(super) line: &'static str,
    /// DIR/config.
    pub(super) config: &'static str,
    /// Whether it ends by itself, before the next is started.
    pub(super) ends: bool,
}

/// What the kubeconfig says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// `server: http://`, with this path; the hop has the credential.
    Http(&'static str),
    /// `server: https://`; the hop has the credential.
    Https,
    /// The same, and the hop asks for a certificate of ours.
    HttpsWithCertificate,
    /// The API server itself with the administrator's certificate, and a `proxy-url` of this scheme.
    ProxyUrl(&'static str),
    /// The same by `HTTPS_PROXY`.
    Environment,
}

const NGINX: DebianPackages = DebianPackages {
    name: "debian-nginx",
    packages: &["nginx"],
};
const HAPROXY: DebianPackages = DebianPackages {
    name: "debian-haproxy",
    packages: &[
        "haproxy",
        "liblua5.3-0",
        "libopentracing-c-wrapper0",
        "libopentracing1",
    ],
};
const CADDY: DebianPackages = DebianPackages {
    name: "debian-caddy",
    packages: &["caddy"],
};
const STUNNEL: DebianPackages = DebianPackages {
    name: "debian-stunnel",
    packages: &["stunnel4", "libwrap0", "libnsl2", "libtirpc3"],
};
const SQUID: DebianPackages = DebianPackages {
    name: "debian-squid",
    packages: &[
        "squid",
        "squid-common",
        "squid-langpack",
        "libecap3",
        "libltdl7",
        "libnetfilter-conntrack3",
        "libnfnetlink0",
    ],
};
const TINYPROXY: DebianPackages = DebianPackages {
    name: "debian-tinyproxy",
    packages: &["tinyproxy-bin"],
};
const MICROSOCKS: DebianPackages = DebianPackages {
    name: "debian-microsocks",
    packages: &["microsocks"],
};
const SSH: DebianPackages = DebianPackages {
    name: "debian-ssh",
    packages: &[
        "openssh-server",
        "openssh-client",
        "libwrap0",
        "libnsl2",
        "libtirpc3",
    ],
};

/// nginx with this in its `http`.
macro_rules! nginx {
    ($server:literal) => {
        HopVia::Debian(
            &NGINX,
            &[HopProgram {
                line: "ROOT/usr/sbin/nginx -c DIR/config",
                config: concat!(
                    "daemon off; user root; master_process off; pid DIR/pid; error_log DIR/log; events {}\n",
                    "http {\n  access_log off;\n  client_body_temp_path DIR/b; proxy_temp_path DIR/p; ",
                    "fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;\n",
                    "  proxy_ssl_certificate PKI/admin.crt; proxy_ssl_certificate_key PKI/admin.key;\n",
                    "  map $http_upgrade $connection_upgrade { '' ''; default upgrade; }\n",
                    $server,
                    "\n}\n"
                ),
                ends: false,
            }],
        )
    };
}

/// HAProxy with this behind its `defaults`.
macro_rules! haproxy {
    ($rest:literal) => {
        HopVia::Debian(
            &HAPROXY,
            &[HopProgram {
                line: "ROOT/usr/sbin/haproxy -db -f DIR/config",
                config: concat!(
                    "defaults\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n",
                    $rest
                ),
                ends: false,
            }],
        )
    };
}

/// Caddy with this site.
macro_rules! caddy {
    ($site:literal) => {
        HopVia::Debian(
            &CADDY,
            &[HopProgram {
                line: "ROOT/usr/bin/caddy run --config DIR/config --adapter caddyfile",
                config: concat!(
                    "{\n  admin off\n  auto_https off\n  storage file_system DIR\n}\n",
                    $site,
                    "  reverse_proxy https://API {\n    transport http {\n",
                    "      tls_client_auth PKI/admin.crt PKI/admin.key\n",
                    "      tls_trusted_ca_certs PKI/ca.crt\n    }\n  }\n}\n"
                ),
                ends: false,
            }],
        )
    };
}

const fn works(name: &'static str, via: HopVia, to: To, transport: &'static str) -> Hop {
    Hop {
        name,
        via,
        to,
        third: None,
        how: Ok(transport),
    }
}

const fn cuts(name: &'static str, via: HopVia, to: To, after: u64, transport: &'static str) -> Hop {
    Hop {
        third: Some(Third::AfterCut(Duration::from_secs(after))),
        ..works(name, via, to, transport)
    }
}

const fn keeps(
    name: &'static str,
    via: HopVia,
    to: To,
    silent: u64,
    transport: &'static str,
) -> Hop {
    Hop {
        third: Some(Third::Silent(Duration::from_secs(silent))),
        ..works(name, via, to, transport)
    }
}

const fn refused(name: &'static str, via: HopVia, to: To, sentence: &'static str) -> Hop {
    Hop {
        name,
        via,
        to,
        third: None,
        how: Err(sentence),
    }
}

const PLAIN: To = To::Http("");

pub(super) const HOPS: &[Hop] = &[
    works(
        "nginx, upgrade headers passed on",
        nginx!(
            "  server { listen 127.0.0.1:PORT;\n    location / { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_pass https://API; }\n  }"
        ),
        PLAIN,
        "spdy",
    ),
    works(
        "nginx, the same with buffering off",
        nginx!(
            "  server { listen 127.0.0.1:PORT;\n    location / { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_buffering off; proxy_request_buffering off; proxy_pass https://API; }\n  }"
        ),
        PLAIN,
        "spdy",
    ),
    refused(
        "nginx, `proxy_pass` alone",
        nginx!(
            "  server { listen 127.0.0.1:PORT;\n    location / {  proxy_pass https://API; }\n  }"
        ),
        PLAIN,
        "takes upgrades away",
    ),
    refused(
        "nginx, HTTP/1.1 upstream, no upgrade headers",
        nginx!(
            "  server { listen 127.0.0.1:PORT;\n    location / { proxy_http_version 1.1; proxy_set_header Connection ''; proxy_pass https://API; }\n  }"
        ),
        PLAIN,
        "takes upgrades away",
    ),
    cuts(
        "nginx, `proxy_read_timeout` 2 s",
        nginx!(
            "  server { listen 127.0.0.1:PORT;\n    location / { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_read_timeout 2s; proxy_send_timeout 2s; proxy_pass https://API; }\n  }"
        ),
        PLAIN,
        2,
        "spdy",
    ),
    keeps(
        "nginx, `proxy_read_timeout` 60 s, the default; an answer after 65 s",
        nginx!(
            "  server { listen 127.0.0.1:PORT;\n    location / { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_pass https://API; }\n  }"
        ),
        PLAIN,
        65,
        "spdy",
    ),
    works(
        "nginx, below the path `/k8s/clusters/c-x`",
        nginx!(
            "  server { listen 127.0.0.1:PORT;\n    location /k8s/clusters/c-x/ { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_pass https://API/; }\n  }"
        ),
        To::Http("/k8s/clusters/c-x"),
        "spdy",
    ),
    works(
        "nginx, TLS ended",
        nginx!(
            "  server { listen 127.0.0.1:PORT ssl; ssl_certificate PKI/server.crt; ssl_certificate_key PKI/server.key;\n    location / { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_pass https://API; }\n  }"
        ),
        To::Https,
        "spdy",
    ),
    works(
        "nginx, TLS ended, HTTP/2 offered",
        nginx!(
            "  server { listen 127.0.0.1:PORT ssl http2; ssl_certificate PKI/server.crt; ssl_certificate_key PKI/server.key;\n    location / { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_pass https://API; }\n  }"
        ),
        To::Https,
        "spdy",
    ),
    works(
        "nginx, TLS ended, client certificates demanded",
        nginx!(
            "  server { listen 127.0.0.1:PORT ssl; ssl_certificate PKI/server.crt; ssl_certificate_key PKI/server.key; ssl_client_certificate PKI/ca.crt; ssl_verify_client on;\n    location / { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_pass https://API; }\n  }"
        ),
        To::HttpsWithCertificate,
        "spdy",
    ),
    works(
        "HAProxy, TLS passed through",
        haproxy!(
            "frontend f\n  mode tcp\n  bind 127.0.0.1:PORT\n  default_backend b\nbackend b\n  mode tcp\n  server s API\n"
        ),
        To::HttpsWithCertificate,
        "spdy",
    ),
    works(
        "HAProxy, TLS ended",
        haproxy!(
            "frontend f\n  mode http\n  bind 127.0.0.1:PORT ssl crt DIR/server.pem\n  default_backend b\nbackend b\n  mode http\n  server s API ssl verify none crt DIR/admin.pem\n"
        ),
        To::Https,
        "spdy",
    ),
    works(
        "HAProxy, TLS ended, HTTP/2 offered",
        haproxy!(
            "frontend f\n  mode http\n  bind 127.0.0.1:PORT ssl crt DIR/server.pem alpn h2,http/1.1\n  default_backend b\nbackend b\n  mode http\n  server s API ssl verify none crt DIR/admin.pem\n"
        ),
        To::Https,
        "spdy",
    ),
    refused(
        "HAProxy, HTTP/2 only towards us",
        haproxy!(
            "frontend f\n  mode http\n  bind 127.0.0.1:PORT ssl crt DIR/server.pem alpn h2 proto h2\n  default_backend b\nbackend b\n  mode http\n  server s API ssl verify none crt DIR/admin.pem\n"
        ),
        To::Https,
        "the connection was dropped",
    ),
    cuts(
        "HAProxy, `timeout tunnel` 2 s",
        haproxy!(
            "frontend f\n  mode http\n  bind 127.0.0.1:PORT\n  default_backend b\nbackend b\n  mode http\n  timeout tunnel 2s\n  server s API ssl verify none crt DIR/admin.pem\n"
        ),
        PLAIN,
        2,
        "spdy",
    ),
    works(
        "Caddy",
        caddy!("http://127.0.0.1:PORT {\n"),
        PLAIN,
        "spdy-ws",
    ),
    works(
        "Caddy, TLS ended, HTTP/2 offered",
        caddy!("https://127.0.0.1:PORT {\n  tls PKI/server.crt PKI/server.key\n"),
        To::Https,
        "spdy-ws",
    ),
    works(
        "stunnel",
        HopVia::Debian(
            &STUNNEL,
            &[HopProgram {
                line: "ROOT/usr/bin/stunnel4 DIR/config",
                config: "foreground = yes\npid =\n[api]\nclient = yes\naccept = 127.0.0.1:PORT\nconnect = API\ncert = PKI/admin.crt\nkey = PKI/admin.key\n",
                ends: false,
            }],
        ),
        PLAIN,
        "spdy",
    ),
    works(
        "squid, `proxy-url`",
        HopVia::Debian(
            &SQUID,
            &[HopProgram {
                line: "ROOT/usr/sbin/squid -N -f DIR/config",
                config: "http_port 127.0.0.1:PORT\nhttp_access allow all\ncache deny all\npid_filename none\ncache_log DIR/log\naccess_log none\ncoredump_dir DIR\nvisible_hostname hop\nshutdown_lifetime 0 seconds\nmime_table ROOT/usr/share/squid/mime.conf\nicon_directory ROOT/usr/share/squid/icons\nerror_directory ROOT/usr/share/squid-langpack/templates\nunlinkd_program ROOT/usr/lib/squid/unlinkd\nlogfile_daemon ROOT/usr/lib/squid/log_file_daemon\npinger_enable off\nnetdb_filename none\n",
                ends: false,
            }],
        ),
        To::ProxyUrl("http"),
        "spdy",
    ),
    works(
        "squid, `HTTPS_PROXY`",
        HopVia::Debian(
            &SQUID,
            &[HopProgram {
                line: "ROOT/usr/sbin/squid -N -f DIR/config",
                config: "http_port 127.0.0.1:PORT\nhttp_access allow all\ncache deny all\npid_filename none\ncache_log DIR/log\naccess_log none\ncoredump_dir DIR\nvisible_hostname hop\nshutdown_lifetime 0 seconds\nmime_table ROOT/usr/share/squid/mime.conf\nicon_directory ROOT/usr/share/squid/icons\nerror_directory ROOT/usr/share/squid-langpack/templates\nunlinkd_program ROOT/usr/lib/squid/unlinkd\nlogfile_daemon ROOT/usr/lib/squid/log_file_daemon\npinger_enable off\nnetdb_filename none\n",
                ends: false,
            }],
        ),
        To::Environment,
        "spdy",
    ),
    works(
        "tinyproxy, `proxy-url`",
        HopVia::Debian(
            &TINYPROXY,
            &[HopProgram {
                line: "ROOT/usr/bin/tinyproxy -d -c DIR/config",
                config: "Port PORT\nListen 127.0.0.1\nTimeout 600\nLogFile \"DIR/log\"\nAllow 127.0.0.1\n",
                ends: false,
            }],
        ),
        To::ProxyUrl("http"),
        "spdy",
    ),
    works(
        "tinyproxy, `HTTPS_PROXY`",
        HopVia::Debian(
            &TINYPROXY,
            &[HopProgram {
                line: "ROOT/usr/bin/tinyproxy -d -c DIR/config",
                config: "Port PORT\nListen 127.0.0.1\nTimeout 600\nLogFile \"DIR/log\"\nAllow 127.0.0.1\n",
                ends: false,
            }],
        ),
        To::Environment,
        "spdy",
    ),
    cuts(
        "tinyproxy, `Timeout` 2 s",
        HopVia::Debian(
            &TINYPROXY,
            &[HopProgram {
                line: "ROOT/usr/bin/tinyproxy -d -c DIR/config",
                config: "Port PORT\nListen 127.0.0.1\nTimeout 2\nLogFile \"DIR/log\"\nAllow 127.0.0.1\n",
                ends: false,
            }],
        ),
        To::ProxyUrl("http"),
        2,
        "spdy",
    ),
    works(
        "microsocks, `proxy-url` socks5",
        HopVia::Debian(
            &MICROSOCKS,
            &[HopProgram {
                line: "ROOT/usr/bin/microsocks -i 127.0.0.1 -p PORT",
                config: "",
                ends: false,
            }],
        ),
        To::ProxyUrl("socks5"),
        "spdy",
    ),
    works(
        "`ssh -D`, `proxy-url` socks5",
        HopVia::Debian(
            &SSH,
            &[
                HopProgram {
                    line: "mkdir -p /run/sshd",
                    config: "",
                    ends: true,
                },
                HopProgram {
                    line: "ROOT/usr/bin/ssh-keygen -q -t ed25519 -N  -f DIR/key",
                    config: "",
                    ends: true,
                },
                HopProgram {
                    // A user of its own, who is there where the package is installed, is what sshd insists on.
                    line: "unshare --mount --propagation private sh -e DIR/config",
                    config: "cp /etc/passwd DIR/passwd\necho 'sshd:x:64999:65534::/run/sshd:/bin/false' >>DIR/passwd\n\
                             mount --bind DIR/passwd /etc/passwd\ncat >DIR/sshd <<'END'\n\
                             ListenAddress 127.0.0.1:PORT2\nHostKey DIR/key\nAuthorizedKeysFile DIR/key.pub\nStrictModes no\n\
                             PermitRootLogin yes\nUsePAM no\nPidFile none\nEND\nexec ROOT/usr/sbin/sshd -D -f DIR/sshd\n",
                    ends: false,
                },
                HopProgram {
                    line: "ROOT/usr/bin/ssh -F none -N -D 127.0.0.1:PORT -i DIR/key -p PORT2 -o StrictHostKeyChecking=no \
                           -o UserKnownHostsFile=DIR/known -o ConnectionAttempts=20 root@127.0.0.1",
                    config: "",
                    ends: false,
                },
            ],
        ),
        To::ProxyUrl("socks5"),
        "spdy",
    ),
    refused(
        "a gateway that takes `Upgrade` away",
        HopVia::Gateway(Does::Strips),
        PLAIN,
        "takes upgrades away",
    ),
    refused(
        "a gateway that answers 101 and swallows",
        HopVia::Gateway(Does::Swallows),
        PLAIN,
        "nothing was received after them",
    ),
    refused(
        "a gateway that answers upgrades with 400",
        HopVia::Gateway(Does::Refuses("400 Bad Request")),
        PLAIN,
        "400",
    ),
    refused(
        "a gateway that answers upgrades with 403",
        HopVia::Gateway(Does::Refuses("403 Forbidden")),
        PLAIN,
        "403",
    ),
    refused(
        "a gateway that answers upgrades with 426",
        HopVia::Gateway(Does::Refuses("426 Upgrade Required")),
        PLAIN,
        "426",
    ),
    refused(
        "a gateway that answers upgrades with 429",
        HopVia::Gateway(Does::Refuses("429 Too Many Requests")),
        PLAIN,
        "429",
    ),
    refused(
        "a gateway that answers upgrades with 502",
        HopVia::Gateway(Does::Refuses("502 Bad Gateway")),
        PLAIN,
        "502",
    ),
    works(
        "a gateway that answers 101 and swallows SPDY",
        HopVia::Gateway(Does::SwallowsSpdy),
        PLAIN,
        "spdy-ws",
    ),
    works(
        "a gateway that lets no SPDY through (403)",
        HopVia::Gateway(Does::RefusesSpdy),
        PLAIN,
        "spdy-ws",
    ),
    cuts(
        "a gateway that cuts after 2 s of silence",
        HopVia::Gateway(Does::CutsSilence(Duration::from_secs(2))),
        PLAIN,
        2,
        "spdy",
    ),
    keeps(
        "a gateway that cuts after 60 s of silence; an answer after 65 s",
        HopVia::Gateway(Does::CutsSilence(Duration::from_secs(60))),
        PLAIN,
        65,
        "spdy",
    ),
    cuts(
        "a gateway that cuts after 8 s (an hour of a token's life)",
        HopVia::Gateway(Does::CutsAfter(Duration::from_secs(8))),
        PLAIN,
        8,
        "spdy",
    ),
    works(
        "a gateway that writes one byte at a time",
        HopVia::Gateway(Does::Dribbles),
        PLAIN,
        "spdy",
    ),
    works(
        "a gateway that holds heads back for 3 s",
        HopVia::Gateway(Does::Holds(Duration::from_secs(3))),
        PLAIN,
        "spdy",
    ),
];
