//! An nginx before the API server of the real cluster. Its clients have the administrator's rights.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use lab::Lab;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Starts it with these servers, each of which has a port of its own; it ends when dropped. In a server's directives
/// `ADDRESS` stands for where it listens, and `API` for the URL of the API server.
pub(crate) async fn nginx(
    lab: &Lab,
    dir: &Path,
    servers: &[String],
) -> anyhow::Result<(Child, Vec<u16>)> {
    let package = lab.debian("debian-nginx", &["nginx"]).await?;
    let api = lab
        .kubectl(&[
            "config",
            "view",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ])
        .await?;
    let mut free = Vec::new();
    for _ in servers {
        free.push(TcpListener::bind("127.0.0.1:0").await?);
    }
    let ports = free
        .iter()
        .map(|listener| anyhow::Ok(listener.local_addr()?.port()));
    let ports = ports.collect::<anyhow::Result<Vec<_>>>()?;
    drop(free);
    let servers = servers.iter().zip(&ports).map(|(directives, port)| {
        let address = format!("127.0.0.1:{port}");
        let directives = directives.replace("ADDRESS", &address);
        format!("  server {{ {} }}\n", directives.replace("API", &api))
    });
    let servers: String = servers.collect();
    let (here, pki) = (dir.display(), lab.dir().join("pki"));
    let pki = pki.display();
    let config = format!(
        "daemon off;
user root;
master_process off;
pid {here}/nginx.pid;
error_log stderr crit;
events {{}}
http {{
  access_log off;
  client_body_temp_path {here}; proxy_temp_path {here}; fastcgi_temp_path {here}; uwsgi_temp_path {here}; scgi_temp_path {here};
  proxy_ssl_certificate {pki}/admin.crt;
  proxy_ssl_certificate_key {pki}/admin.key;
  proxy_http_version 1.1;
  map $http_upgrade $connection_upgrade {{ '' ''; default upgrade; }}
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection $connection_upgrade;
  proxy_read_timeout 1h;
{servers}}}
"
    );
    let file = write(dir, "nginx.conf", &config)?;
    let nginx = Command::new(package.join("usr/sbin/nginx"))
        .args(["-c", &file])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("nginx does not start")?;
    let last = ports.last().context("there are servers")?;
    let listening = async {
        while TcpStream::connect(("127.0.0.1", *last)).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let listening = timeout(Duration::from_secs(20), listening).await;
    listening.context("nginx does not listen; its error is above")?;
    Ok((nginx, ports))
}

/// The path of a file with this text.
pub(crate) fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<String> {
    let path = dir.join(name);
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}
