//! The PAC file, whose text somebody else knows.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

type Make = dyn Fn(Option<String>) -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync;

/// The text of `/proxy.pac`, made each time it is asked for.
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
    /// A text made from `host:port`, as the client knows the proxy; `None` where it did not say. It is an address, or
    /// a name the proxy is known by.
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

/// A text that is always the same.
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
