//! HTTP at the wrong door: enough to tell it, and to answer in its own language.

const METHODS: [&[u8]; 10] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
    b"PRI ",
];

/// Whether this begins an HTTP request; `None` when more bytes are needed.
pub(crate) fn sniff(input: &[u8]) -> Option<bool> {
    if METHODS.iter().any(|method| input.starts_with(method)) {
        Some(true)
    } else if METHODS.iter().any(|method| method.starts_with(input)) {
        None
    } else {
        Some(false)
    }
}

/// What a person or a program finds out from it.
pub(crate) const ANSWER: &str = concat!(
    "HTTP/1.1 400 Bad Request\r\n",
    "Content-Type: text/plain; charset=utf-8\r\n",
    "Content-Length: 111\r\n",
    "Connection: close\r\n",
    "\r\n",
    "This port speaks SOCKS5, not HTTP: use it as a socks5h:// proxy, or start an HTTP proxy with --listen-http ADDR",
);
