//! Credentials over days, in minutes: what is revoked, what expires, what changes on disk. Open streams are not cut.
//!
//! Revocation and expiry are the real cluster's: without `KUBEVPN_LAB` in the environment only the last test runs.
//! `KUBEVPN_LAB_SECONDS` is how long each load lasts, 180 unless told.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use kubevpn_scenarios::Socks;
use kubevpn_scenarios::managed::{Managed, connection, id_of, listener};
use kubevpn_sim::Sim;
use lab::Lab;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, Issuer, KeyPair,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::{kubevpn, say};

fn seconds() -> u64 {
    let told = std::env::var("KUBEVPN_LAB_SECONDS").ok();
    told.map_or(180, |text| text.parse().unwrap())
}

async fn lab() -> Option<Lab> {
    std::env::var_os("KUBEVPN_LAB")?;
    Some(Lab::attach().await.unwrap())
}

/// A kubeconfig for the lab's cluster with this user's entry.
fn kubeconfig(lab: &Lab, user: serde_json::Value) -> String {
    let base = std::fs::read_to_string(lab.kubeconfig()).unwrap();
    let mut config: serde_json::Value = serde_yaml_ng::from_str(&base).unwrap();
    config["users"][0]["user"] = user;
    config.to_string()
}

/// Whole in place of the old, as who rotates a file does it.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn open(managed: &Managed, kubeconfig: &Path, flags: &[&str]) -> (String, SocketAddr) {
    let words = [&["--socks-listen", "127.0.0.1:0"], flags].concat();
    let said = managed.connect(kubeconfig, &words).await.unwrap();
    let id = id_of(&said.with(0, &[]).unwrap()).unwrap();
    let status = managed.status().await.unwrap();
    (id.clone(), listener(&status, &id, "socks").unwrap())
}

/// A download that is read slowly, for as long as it is wanted.
struct Held(TcpStream);

impl Held {
    async fn begin(socks: SocketAddr) -> Self {
        let mut stream = Socks::connect(socks, "productpage", 9080).await.unwrap();
        let request = "GET /bytes?n=100000000 HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut held = Self(stream);
        held.flows().await;
        held
    }

    async fn flows(&mut self) {
        let mut some = [0; 1000];
        let read = self.0.read_exact(&mut some);
        tokio::time::timeout(Duration::from_secs(60), read)
            .await
            .unwrap()
            .unwrap();
    }
}

/// New connections one after the other, each an upgrade of its own, for the time there is. None may fail.
async fn load(socks: SocketAddr) -> usize {
    let until = Instant::now() + Duration::from_secs(seconds());
    let mut held = Held::begin(socks).await;
    let mut done = 0;
    while Instant::now() < until {
        let service = ["productpage", "reviews", "api.team-a"][done % 3];
        let port = [9080, 80, 80][done % 3];
        let opened = Socks::connect(socks, service, port).await;
        opened.unwrap_or_else(|e| panic!("connection {done} to {service}: {e}"));
        held.flows().await;
        done += 1;
        sleep(Duration::from_millis(100)).await;
    }
    done
}

/// Each connection asks the API server: there is no session to hide behind.
const UPGRADE_EACH: [&str; 2] = ["--transport", "ws"];

#[tokio::test(flavor = "multi_thread")]
async fn a_plugins_token_without_an_end_is_revoked() {
    let Some(lab) = lab().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let (token, plugin) = (dir.path().join("token"), dir.path().join("plugin"));
    let script = format!(
        "#!/bin/sh\necho run >>'{runs}'\nprintf '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\
         \"ExecCredential\",\"status\":{{\"token\":\"%s\"}}}}' \"$(cat '{token}')\"\n",
        runs = dir.path().join("runs").display(),
        token = token.display(),
    );
    std::fs::write(&plugin, script).unwrap();
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let account = format!("revoked-{}", std::process::id());
    let binding = format!("--serviceaccount=default:{account}");
    lab.kubectl(&["create", "serviceaccount", &account])
        .await
        .unwrap();
    let grant = [
        "create",
        "clusterrolebinding",
        &account,
        "--clusterrole=cluster-admin",
        &binding,
    ];
    lab.kubectl(&grant).await.unwrap();
    // A token lives as long as the Secret it is bound to.
    let issue = async |n: usize| {
        let secret = format!("{account}-{n}");
        lab.kubectl(&["create", "secret", "generic", &secret])
            .await
            .unwrap();
        let bound = ["--bound-object-kind=Secret", "--bound-object-name", &secret];
        let text = lab
            .kubectl(&[&["create", "token", &*account], &bound[..]].concat())
            .await
            .unwrap();
        replace(&token, text.trim());
    };
    issue(0).await;
    let path = dir.path().join("kubeconfig");
    let exec = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": plugin, "interactiveMode": "Never",
    }});
    std::fs::write(&path, kubeconfig(&lab, exec)).unwrap();
    let managed = Managed::new(kubevpn()).unwrap();
    let (id, socks) = open(&managed, &path, &UPGRADE_EACH).await;
    let revoke = async {
        for n in 0.. {
            sleep(Duration::from_secs(10)).await;
            issue(n + 1).await;
            lab.kubectl(&["delete", "secret", &format!("{account}-{n}")])
                .await
                .unwrap();
        }
    };
    let done = tokio::select! {
        done = load(socks) => done,
        () = revoke => unreachable!("it revokes for ever"),
    };
    let runs = std::fs::read_to_string(dir.path().join("runs"))
        .unwrap()
        .lines()
        .count();
    say(&format!(
        "{done} connections, none failed; the plugin ran {runs} times"
    ));
    let status = managed.status().await.unwrap();
    assert_eq!(
        connection(&status, &id).unwrap()["Traffic"]["RefusedConnections"],
        0
    );
    // It did run out, and was not run for every request.
    assert!(runs > 2 && runs < 100, "{runs}");
    managed.quit().await.unwrap();
    for kind in ["serviceaccount", "clusterrolebinding"] {
        lab.kubectl(&["delete", kind, &account]).await.unwrap();
    }
}

/// Certificates of ten seconds, signed by the cluster's authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
}

impl Authority {
    async fn of(lab: &Lab) -> Self {
        let mut convert = Command::new("openssl");
        convert
            .args(["pkcs8", "-topk8", "-nocrypt", "-in"])
            .arg(lab.dir().join("pki/ca.key"));
        let key = convert.output().await.unwrap();
        assert!(key.status.success(), "{key:?}");
        let key = KeyPair::from_pem(&String::from_utf8(key.stdout).unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // Byte by byte as in the authority's own certificate.
        let name = DnValue::PrintableString("lab-ca".try_into().unwrap());
        params.distinguished_name.push(DnType::CommonName, name);
        Self {
            issuer: Issuer::new(params, key),
            key: KeyPair::generate().unwrap(),
        }
    }

    fn certificate(&self) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        params
            .distinguished_name
            .push(DnType::CommonName, "rotated");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        params.not_before = epoch + (now - Duration::from_secs(60));
        params.not_after = epoch + (now + Duration::from_secs(10));
        params.signed_by(&self.key, &self.issuer).unwrap().pem()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_ten_seconds() {
    let Some(lab) = lab().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::of(&lab).await;
    let certificate = dir.path().join("user.crt");
    replace(&certificate, &authority.certificate());
    std::fs::write(dir.path().join("user.key"), authority.key.serialize_pem()).unwrap();
    let path = dir.path().join("kubeconfig");
    let user = json!({"client-certificate": "user.crt", "client-key": "user.key"});
    std::fs::write(&path, kubeconfig(&lab, user)).unwrap();
    let managed = Managed::new(kubevpn()).unwrap();
    let (id, socks) = open(&managed, &path, &UPGRADE_EACH).await;
    let rotate = async {
        loop {
            sleep(Duration::from_secs(5)).await;
            replace(&certificate, &authority.certificate());
        }
    };
    let done = tokio::select! {
        done = load(socks) => done,
        () = rotate => unreachable!("it rotates for ever"),
    };
    say(&format!(
        "{done} connections over certificates of 10 s, none failed"
    ));
    let status = managed.status().await.unwrap();
    assert_eq!(
        connection(&status, &id).unwrap()["Traffic"]["RefusedConnections"],
        0
    );
    managed.quit().await.unwrap();
}

/// The token in the kubeconfig is replaced by one that is worth nothing, and put back.
#[tokio::test]
async fn the_kubeconfig_changes_on_disk() {
    let sim = Sim::builder().sample().start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let good = sim.kubeconfig_yaml();
    std::fs::write(&path, &good).unwrap();
    let managed = Managed::new(kubevpn()).unwrap();
    let (id, socks) = open(&managed, &path, &[]).await;
    let mut held = Held::begin(socks).await;
    let becomes = async |wanted: &str| {
        let waiting = async {
            loop {
                let status = managed.status().await.unwrap();
                if connection(&status, &id).unwrap()["State"] == wanted {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(waited.is_ok(), "it never is {wanted}");
    };
    becomes("connected").await;
    replace(&path, &sim.kubeconfig_yaml_for("worth-nothing"));
    becomes("unauthenticated").await;
    held.flows().await;
    replace(&path, "clusters: [broken");
    replace(&path, &good);
    becomes("connected").await;
    // What is no kubeconfig changes nothing but the state.
    replace(&path, "clusters: [broken");
    becomes("degraded").await;
    Socks::connect(socks, "reviews", 80).await.unwrap();
    replace(&path, &good);
    becomes("connected").await;
    held.flows().await;
    managed.quit().await.unwrap();
}
