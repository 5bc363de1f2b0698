//! `kubevpn snippet`: configuration of other programs for a running proxy.

use std::net::SocketAddr;

use clap::ValueEnum;

use super::at::{AtArgs, ProxyAddresses};
use super::kube::KubeArgs;
use crate::exit::Failure;
use crate::out;

/// Print configuration that makes another program use the proxy
///
/// Without --use-http and --use-socks, it names the same listeners as `kubevpn env`. If the program can choose a proxy by host
/// name, only names under cluster.local, .svc and .pod go to the proxy.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # ssh to hosts of the cluster
  kubevpn snippet ssh >> ~/.ssh/config

  # rules for Clash, with a proxy that is running
  kubevpn snippet clash --use-socks 127.0.0.1:1080")]
pub(crate) struct Snippet {
    /// Program to configure
    #[arg(value_name = "PROGRAM", value_enum)]
    program: SnippetProgram,
    #[command(flatten)]
    at: AtArgs,
    #[command(flatten)]
    kube: KubeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SnippetProgram {
    /// A command that starts Chrome, or a browser based on it, with a profile of its own
    Chrome,
    /// user.js of a Firefox profile
    Firefox,
    /// .gitconfig
    Git,
    /// .ssh/config
    Ssh,
    /// Options of the JVM, for idea.vmoptions and the like
    Jetbrains,
    /// settings.json
    Vscode,
    /// .docker/config.json, for containers
    Docker,
    /// An outbound of sing-box, and the rule for the cluster's names
    SingBox,
    /// A proxy of Clash or mihomo, and its rules
    Clash,
    /// The same for Surge
    Surge,
    /// proxychains.conf, for programs without proxy support
    Proxychains,
}

impl Snippet {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let (proxy, _) = self.at.proxy(self.kube).await?;
        out::print(text(self.program, &proxy)?)
    }
}

fn text(program: SnippetProgram, proxy: &ProxyAddresses) -> Result<String, Failure> {
    let http = || {
        proxy.http.ok_or_else(|| {
            Failure::value("this program needs an HTTP listener: start the proxy with --listen-http, or name one with --use-http")
        })
    };
    // Programs that support both get HTTP, which reports the reason of a refusal.
    let url = match (proxy.http, proxy.socks) {
        (Some(http), _) => format!("http://{http}"),
        (None, Some(socks)) => format!("socks5h://{socks}"),
        (None, None) => {
            return Err(Failure::value(
                "no proxy is known: name one with --use-http or --use-socks",
            ));
        }
    };
    let kind = match proxy.socks {
        Some(_) => "socks5",
        None => "http",
    };
    let Some(any) = proxy.socks.or(proxy.http) else {
        return Err(Failure::value(
            "no proxy is known: name one with --use-http or --use-socks",
        ));
    };
    let (ip, port) = (any.ip(), any.port());
    Ok(match program {
        SnippetProgram::Chrome => {
            // Chrome's socks5 leaves names to the proxy.
            let server = match proxy.http {
                Some(http) => format!("--proxy-pac-url=http://{http}/proxy.pac"),
                None => format!("--proxy-server=socks5://{any}"),
            };
            format!("google-chrome --user-data-dir=\"$HOME/.cache/kubevpn-chrome\" {server}\n")
        }
        SnippetProgram::Firefox => match proxy.http {
            // The PAC file selects the hosts of the cluster.
            Some(http) => format!(
                "user_pref(\"network.proxy.type\", 2);\nuser_pref(\"network.proxy.autoconfig_url\", \"http://{http}/proxy.pac\");\n"
            ),
            None => firefox(proxy),
        },
        SnippetProgram::Git => format!(
            "# one for each host of the cluster\n[http \"http://SERVICE.NAMESPACE.svc.cluster.local\"]\n\tproxy = {url}\n"
        ),
        SnippetProgram::Ssh => {
            "Host *.svc *.svc.cluster.local *.pod\n    ProxyCommand kubevpn nc %h %p\n".to_owned()
        }
        SnippetProgram::Jetbrains => {
            let local = "localhost|127.*|[::1]";
            match proxy.http {
                Some(http) => {
                    ["http", "https"]
                        .map(|scheme| {
                            format!(
                                "-D{scheme}.proxyHost={}\n-D{scheme}.proxyPort={}\n",
                                http.ip(),
                                http.port()
                            )
                        })
                        .concat()
                        + &format!("-Dhttp.nonProxyHosts={local}\n")
                }
                None => format!(
                    "-DsocksProxyHost={ip}\n-DsocksProxyPort={port}\n-DsocksNonProxyHosts={local}\n"
                ),
            }
        }
        SnippetProgram::Vscode => {
            format!(
                "{{\n  \"http.proxy\": \"http://{}\",\n  \"http.proxySupport\": \"on\"\n}}\n",
                http()?
            )
        }
        SnippetProgram::Docker => {
            // A container's own loopback is not this machine's.
            let inside = format!("http://host.docker.internal:{}", http()?.port());
            format!(
                "{{\n  \"proxies\": {{\n    \"default\": {{\n      \"httpProxy\": \"{inside}\",\n      \"httpsProxy\": \"{inside}\",\n      \"noProxy\": \"localhost,127.0.0.1\"\n    }}\n  }}\n}}\n"
            )
        }
        SnippetProgram::SingBox => format!(
            "{{\n  \"outbounds\": [\n    {{\"type\": \"{}\", \"tag\": \"kubevpn\", \"server\": \"{ip}\", \"server_port\": {port}}}\n  ],\n  \"route\": {{\n    \"rules\": [\n      {{\"domain_suffix\": [\".cluster.local\", \".svc\", \".pod\"], \"outbound\": \"kubevpn\"}}\n    ]\n  }}\n}}\n",
            if kind == "socks5" { "socks" } else { kind }
        ),
        SnippetProgram::Clash => format!(
            "proxies:\n- {{name: kubevpn, type: {kind}, server: {ip}, port: {port}}}\nrules:\n- DOMAIN-SUFFIX,cluster.local,kubevpn\n- DOMAIN-SUFFIX,svc,kubevpn\n- DOMAIN-SUFFIX,pod,kubevpn\n"
        ),
        SnippetProgram::Surge => format!(
            "[Proxy]\nkubevpn = {kind}, {ip}, {port}\n[Rule]\nDOMAIN-SUFFIX,cluster.local,kubevpn\nDOMAIN-SUFFIX,svc,kubevpn\nDOMAIN-SUFFIX,pod,kubevpn\n"
        ),
        SnippetProgram::Proxychains => {
            format!("strict_chain\nproxy_dns\n[ProxyList]\n{kind} {ip} {port}\n")
        }
    })
}

/// Preferences of a profile (Mozilla's `network.proxy.*`).
pub(super) fn firefox(proxy: &ProxyAddresses) -> String {
    let number =
        |name: &str, value: u16| format!("user_pref(\"network.proxy.{name}\", {value});\n");
    let host = |name: &str, addr: SocketAddr| {
        format!("user_pref(\"network.proxy.{name}\", \"{}\");\n", addr.ip())
    };
    let mut text = number("type", 1);
    match (proxy.http, proxy.socks) {
        (Some(http), _) => {
            for name in ["http", "ssl"] {
                text += &host(name, http);
                text += &number(&format!("{name}_port"), http.port());
            }
        }
        (None, Some(socks)) => {
            text += &host("socks", socks);
            text += &number("socks_port", socks.port());
            text += &number("socks_version", 5);
            text += "user_pref(\"network.proxy.socks_remote_dns\", true);\n";
        }
        (None, None) => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(http: bool, socks: bool) -> ProxyAddresses {
        ProxyAddresses {
            http: http.then(|| "127.0.0.1:3128".parse().unwrap()),
            socks: socks.then(|| "127.0.0.1:1080".parse().unwrap()),
            login: None,
        }
    }

    #[test]
    fn every_snippet_names_the_proxy() {
        for program in SnippetProgram::value_variants() {
            for (http, socks) in [(true, true), (true, false), (false, true)] {
                let said = text(*program, &proxy(http, socks));
                let needs_http = matches!(program, SnippetProgram::Vscode | SnippetProgram::Docker);
                if needs_http && !http {
                    assert!(said.is_err(), "{program:?}");
                    continue;
                }
                let said = said.unwrap();
                let port = said.contains("3128") || said.contains("1080");
                assert!(
                    port || *program == SnippetProgram::Ssh,
                    "{program:?}: {said}"
                );
                assert!(said.ends_with('\n'), "{program:?}: {said}");
                if matches!(
                    program,
                    SnippetProgram::Vscode | SnippetProgram::Docker | SnippetProgram::SingBox
                ) {
                    serde_json::from_str::<serde_json::Value>(&said).unwrap();
                }
                if *program == SnippetProgram::Clash {
                    serde_yaml_ng::from_str::<serde_json::Value>(&said).unwrap();
                }
            }
            assert!(text(*program, &proxy(false, false)).is_err());
        }
    }

    #[test]
    fn firefox_leaves_names_to_socks() {
        let said = firefox(&proxy(false, true));
        assert!(said.contains("socks_remote_dns\", true"), "{said}");
        let said = firefox(&proxy(true, true));
        assert!(said.contains("\"network.proxy.ssl_port\", 3128"), "{said}");
    }
}
