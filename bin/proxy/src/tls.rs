//! TLS with clients of SOCKS5 and HTTP. The certificate can be renewed while they are served.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use kubevpn_conn::{Client, ClientIo, Drain, Observed};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use crate::reread::{Reread, read};

/// Protocol name of HTTP (RFC 7301): some clients require an answer to it. SOCKS5 has none.
const ALPN: &[u8] = b"http/1.1";

/// The certificate of the listeners. Clones share it.
#[derive(Clone)]
pub struct ListenerTls(Arc<RwLock<Arc<ServerConfig>>>);

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the certificate {} with the key {}: {reason}", certificate.display(), key.display())]
pub struct TlsError {
    certificate: PathBuf,
    key: PathBuf,
    /// The reason, without contents of the files.
    reason: String,
}

impl ListenerTls {
    /// Reads PEM files of at most 64 KiB: the certificate chain, and its private key. Speaks TLS 1.2 and 1.3, and requests
    /// no certificate from clients. Also returns the watcher of the files.
    pub fn read(certificate: &Path, key: &Path) -> Result<(Self, Reread), TlsError> {
        let failed = |reason| TlsError {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            reason,
        };
        let files = [certificate, key].map(Path::to_owned).to_vec();
        let named = |file: &PathBuf| {
            read(file).map_err(|error| failed(format!("{}: {error}", file.display())))
        };
        let contents = files.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        let first = config(&contents).map_err(failed)?;
        let tls = Self(Arc::new(RwLock::new(first)));
        let clone = tls.clone();
        let update = move |contents: &[Vec<u8>]| {
            // Sessions of the old certificate are not resumed, because they are stored in its configuration.
            *clone.0.write().unwrap_or_else(PoisonError::into_inner) = config(contents)?;
            Ok(())
        };
        Ok((tls, Reread::new(files, contents, Box::new(update))))
    }

    /// Waits for the client's handshake, without a limit.
    pub(crate) async fn accept(&self, client: Client) -> io::Result<TlsClient> {
        self.acceptor().accept(client).await.map(TlsClient)
    }

    fn acceptor(&self) -> TlsAcceptor {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&config))
    }
}

/// Configuration from certificates and key, in this order.
fn config(contents: &[Vec<u8>]) -> Result<Arc<ServerConfig>, String> {
    let [certificates, key] = contents else {
        return Err("there are two files".into());
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
    let certificates = certificates.map_err(|error| format!("the certificate: {error}"))?;
    if certificates.is_empty() {
        return Err("the certificate: the file has no CERTIFICATE in PEM".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key: {error}"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

impl fmt::Debug for ListenerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// A client whose protocol is inside TLS.
pub(crate) struct TlsClient(TlsStream<Client>);

impl TlsClient {
    fn client(&self) -> &Client {
        self.0.get_ref().0
    }

    fn client_mut(&mut self) -> &mut Client {
        self.0.get_mut().0
    }
}

impl AsyncRead for TlsClient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsClient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

impl ClientIo for TlsClient {
    fn peer(&self) -> Option<SocketAddr> {
        self.client().peer()
    }

    fn broken(&self) -> Option<io::Error> {
        self.client().broken()
    }

    fn closed(&self) -> Option<bool> {
        self.client().closed()
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        self.client().original_destination()
    }

    fn reset_on_drop(&mut self) {
        self.client_mut().reset_on_drop();
    }

    fn close_on_drop(&mut self) {
        self.client_mut().close_on_drop();
    }

    fn drain(&self) -> Drain {
        self.client().drain()
    }

    fn release(&mut self) {
        self.client_mut().release();
    }

    fn authenticated(&mut self) {
        self.client_mut().authenticated();
    }

    fn observed(&self) -> Option<Observed> {
        self.client().observed()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use kubevpn_target::{BoxError, Target};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tower::service_fn;

    use super::*;
    use crate::{Backend, ListenerSpec, Protocol, Server};

    /// A certificate for the name `gateway`, and its key, in PEM.
    fn certificate() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["gateway".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn trusting(certificate: &str) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
        roots.add(certificate.unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    /// Reads byte by byte until `wanted` is complete, or to the end.
    async fn hear(stream: &mut (impl AsyncRead + Unpin), wanted: usize) -> Vec<u8> {
        let mut heard = vec![0; wanted];
        let mut length = 0;
        while length < wanted {
            match stream.read(&mut heard[length..]).await.unwrap() {
                0 => break,
                read => length += read,
            }
        }
        heard.truncate(length);
        heard
    }

    #[tokio::test]
    async fn both_protocols_are_spoken_inside_and_ask_for_the_password() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (certificate, key) = certificate();
        let tls =
            ListenerTls::read(&file("tls.crt", &certificate), &file("tls.key", &key)).unwrap();
        let spec = ListenerSpec {
            auth_file: Some(file("users", "ann:x\nbob:y\n")),
            ..ListenerSpec::new(Protocol::Mixed, "127.0.0.1:0".parse().unwrap())
        };
        let bound = spec.bind(&spec.address, true).await.unwrap().remove(0);
        let address = bound.address().unwrap();
        let echo = service_fn(async |_: Target| {
            let (ours, theirs) = tokio::io::duplex(64);
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(theirs);
                let _ended = tokio::io::copy(&mut reader, &mut writer).await;
            });
            Ok::<_, BoxError>(ours)
        });
        let mut clients = spec.clients(&[address]).unwrap();
        clients.speak_tls(Some(tls));
        let mut server = Server::new(Backend::of_host(echo), clients);
        server.add(bound);
        let connector = trusting(&certificate);
        let connect = async || {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = "gateway".try_into().unwrap();
            connector.connect(name, stream).await.unwrap()
        };

        let mut socks = connect().await;
        for (said, heard) in [
            (&b"\x05\x01\x02"[..], &b"\x05\x02"[..]),
            (b"\x01\x03bob\x01y", b"\x01\x00"),
            (
                b"\x05\x01\x00\x03\x03web\x00\x50",
                b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00",
            ),
            (b"ping", b"ping"),
        ] {
            socks.write_all(said).await.unwrap();
            assert_eq!(hear(&mut socks, heard.len()).await, heard);
        }
        // The end of stream is passed on, and the echo ends too.
        socks.write_all(b"last").await.unwrap();
        socks.shutdown().await.unwrap();
        assert_eq!(hear(&mut socks, 5).await, b"last");

        let asking = "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\nProxy-Authorization: Basic ";
        for (said, heard) in [
            (&b"\x05\x01\x00"[..], &b"\x05\xff"[..]),
            (
                b"CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n",
                b"HTTP/1.1 407 ",
            ),
            (
                &[asking.as_bytes(), b"YW5uOng=\r\n\r\n"].concat(),
                b"HTTP/1.1 200 ",
            ),
            (
                &[asking.as_bytes(), b"YW5uOnk=\r\n\r\n"].concat(),
                b"HTTP/1.1 407 ",
            ),
        ] {
            let mut client = connect().await;
            client.write_all(said).await.unwrap();
            assert_eq!(hear(&mut client, heard.len()).await, heard);
        }

        // Without TLS, the only answer is an alert.
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(b"\x05\x01\x02").await.unwrap();
        plain.shutdown().await.unwrap();
        let heard = hear(&mut plain, 64).await;
        assert!(heard.is_empty() || heard[0] == 0x15, "{heard:?}");
        server.end(Duration::ZERO, std::future::pending()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_certificate_is_used_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (old, new) = (certificate(), certificate());
        fs::write(path("tls.crt"), &old.0).unwrap();
        fs::write(path("tls.key"), &old.1).unwrap();
        let (tls, reread) = ListenerTls::read(&path("tls.crt"), &path("tls.key")).unwrap();
        let following = tokio::spawn(reread.run());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_shown = async |certificate: &str| {
            let connector = trusting(certificate);
            let connecting = async {
                let stream = TcpStream::connect(address).await.unwrap();
                let name = "gateway".try_into().unwrap();
                connector.connect(name, stream).await.is_ok()
            };
            let accepting = async {
                let (stream, _) = listener.accept().await.unwrap();
                let _accepted = tls.accept(stream.into()).await;
            };
            tokio::join!(connecting, accepting).0
        };
        assert!(is_shown(&old.0).await && !is_shown(&new.0).await);
        fs::write(path("tls.crt"), &new.0).unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(is_shown(&old.0).await, "it has no key for the new one");
        fs::write(path("tls.key"), &new.1).unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(is_shown(&new.0).await && !is_shown(&old.0).await);
        following.abort();
    }

    #[test]
    fn files_of_no_use_are_named_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (good, key) = certificate();
        let (_, other) = certificate();
        let good = path("good", &good);
        let key = path("key", &key);
        for (certificate, key, words) in [
            (&path("none", "s3cret"), &key, "no CERTIFICATE"),
            (&good, &path("no-key", "s3cret"), "the key: "),
            (&good, &path("other", &other), "KeyMismatch"),
            (&good, &dir.path().join("missing"), "missing: No such file"),
        ] {
            let error = ListenerTls::read(certificate, key)
                .err()
                .unwrap()
                .to_string();
            assert!(
                error.contains(words) && !error.contains("s3cret"),
                "{error}"
            );
        }
    }
}
