//! The PAC file, whose text the caller provides.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

type Make = dyn Fn(Option<String>) -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync;

/// The text of `/proxy.pac`, made for each request.
///
/// ```
/// use kubevpn_http_connect::Pac;
/// let fixed = Pac::from("function FindProxyForURL(url, host) { return \"PROXY 127.0.0.1:8118\"; }");
/// let made = Pac::new(|proxy| async move {
///     let proxy = proxy.unwrap_or_else(|| "127.0.0.1:8118".into());
///     format!("function FindProxyForURL(url, host) {{ return \"PROXY {proxy}\"; }}")
/// });
/// # let _ = (fixed, made);
/// ```
#[derive(Clone)]
pub struct Pac(Arc<Make>);

impl Pac {
    /// Makes the text from the `host:port` by which the client knows the proxy; `None` if the client did not send one. It
    /// is an address, or one of the proxy's own names.
    pub fn new<F, T>(make: F) -> Self
    where
        F: Fn(Option<String>) -> T + Send + Sync + 'static,
        T: Future<Output = String> + Send + 'static,
    {
        Self(Arc::new(move |host| Box::pin(make(host))))
    }

    pub(crate) async fn text(&self, host: Option<String>) -> String {
        self.0(host).await
    }
}

/// A constant text.
impl From<&'static str> for Pac {
    fn from(text: &'static str) -> Self {
        Self::new(move |_| std::future::ready(text.to_owned()))
    }
}

impl fmt::Debug for Pac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pac")
    }
}
