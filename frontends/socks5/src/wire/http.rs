//! Detection of HTTP on a SOCKS port, and an HTTP answer to it.

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

/// Whether the bytes begin an HTTP request; `None` if more bytes are needed.
pub(crate) fn sniff(input: &[u8]) -> Option<bool> {
    if METHODS.iter().any(|method| input.starts_with(method)) {
        Some(true)
    } else if METHODS.iter().any(|method| method.starts_with(input)) {
        None
    } else {
        Some(false)
    }
}

/// The HTTP answer, which says what to use instead.
pub(crate) const ANSWER: &str = concat!(
    "HTTP/1.1 400 Bad Request\r\n",
    "Content-Type: text/plain; charset=utf-8\r\n",
    "Content-Length: 111\r\n",
    "Connection: close\r\n",
    "\r\n",
    "This port speaks SOCKS5, not HTTP: use it as a socks5h:// proxy, or start an HTTP proxy with --listen-http ADDR",
);
