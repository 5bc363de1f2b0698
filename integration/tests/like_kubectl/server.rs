//! A server that records the first request it gets, and forbids it.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
};

/// What a client shows in its first request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    path: String,
    /// `Authorization`, `Impersonate-…` and, to the proxy before the server, `Proxy-Authorization`.
    headers: Vec<(String, String)>,
    /// The subject's and the key's end of the certificate, which is enough to tell ours apart.
    certificate: Option<Fingerprint>,
}

impl Shown {
    pub(crate) fn has_credential(&self) -> bool {
        !self.headers.is_empty() || self.certificate.is_some()
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Fingerprint(Vec<u8>);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "…{:02x?}", &self.0[self.0.len().saturating_sub(4)..])
    }
}

/// Ends when it is dropped.
pub(crate) struct Recorder {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    tls: Arc<ServerConfig>,
    first: Mutex<Option<Shown>>,
    changed: Condvar,
    ended: AtomicBool,
}

impl Shared {
    fn first(&self) -> MutexGuard<'_, Option<Shown>> {
        self.first.lock().unwrap()
    }
}

impl Recorder {
    pub(crate) fn start(tls: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            tls,
            first: Mutex::default(),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), serving) = (stream, serving.clone()) else {
                    continue;
                };
                std::thread::spawn(move || serve(stream, &serving));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn first(&self) -> Option<Shown> {
        self.shared.first().clone()
    }

    pub(crate) fn forget(&self) {
        *self.shared.first() = None;
    }

    /// Until there is a request, but not long: the client may have ended.
    pub(crate) fn wait(&self) {
        let first = self.shared.first();
        if first.is_none() {
            let waited = self
                .shared
                .changed
                .wait_timeout(first, Duration::from_millis(10));
            drop(waited.unwrap());
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

trait Io: Read + Write {}
impl<T: Read + Write> Io for T {}

/// A stream whose first byte has been read.
struct Begun(Option<u8>, Box<dyn Io>);

impl Read for Begun {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match (self.0.take(), buf) {
            (Some(byte), [first, ..]) => {
                *first = byte;
                Ok(1)
            }
            (_, buf) => self.1.read(buf),
        }
    }
}

impl Write for Begun {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.1.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.1.flush()
    }
}

fn serve(stream: TcpStream, shared: &Shared) {
    for timeout in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        timeout(&stream, Some(Duration::from_secs(20))).unwrap();
    }
    // Clients that do not like us go away in the middle.
    let _ = answer(Box::new(stream), Shown::default(), shared);
}

/// TLS or not, a proxy or not, in any order.
fn answer(mut io: Box<dyn Io>, mut shown: Shown, shared: &Shared) -> std::io::Result<()> {
    const HANDSHAKE: u8 = 0x16;
    let mut byte = [0];
    io.read_exact(&mut byte)?;
    let mut io = Begun(Some(byte[0]), io);
    if byte[0] == HANDSHAKE {
        let mut tls = ServerConnection::new(shared.tls.clone()).map_err(std::io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut io)?;
        }
        let end = |der: &CertificateDer<'_>| {
            let kept = der.len().saturating_sub(32);
            Fingerprint(der[kept..].to_vec())
        };
        shown.certificate = tls.peer_certificates().and_then(<[_]>::first).map(end);
        return answer(Box::new(StreamOwned::new(tls, io)), shown, shared);
    }
    let head = head(&mut io)?;
    let mut lines = head.lines();
    let request = lines.next().unwrap_or_default();
    let kept = ["authorization", "proxy-authorization"];
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let name = name.to_ascii_lowercase();
        if kept.contains(&&*name) || name.starts_with("impersonate-") {
            shown.headers.push((name, value.trim().to_owned()));
        }
    }
    shown.headers.sort();
    if request.starts_with("CONNECT ") {
        io.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        return answer(Box::new(io), shown, shared);
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    // A path of the server's URL, without what each of the programs asks for.
    shown.path = match path.find("/api").or_else(|| path.find("/version")) {
        Some(end) => path[..end].to_owned(),
        None => path.to_owned(),
    };
    shared.first().get_or_insert(shown);
    shared.changed.notify_all();
    let body = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"no","reason":"Forbidden","code":403}"#;
    write!(
        io,
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    io.flush()
}

fn head(io: &mut impl Read) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        io.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > 64 << 10 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Asks for a certificate, and takes any or none.
#[derive(Debug)]
pub(crate) struct Anybody(pub(crate) Vec<SignatureScheme>);

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
