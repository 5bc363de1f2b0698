//! Credentials in what is shown and recorded of HTTP requests.
//!
//! They are known by the names they have, in header fields and in the parameters of URLs, and by their place in front of a
//! host. What stands in a path, or under a name of one's own, is not known as one.

use percent_encoding::percent_decode_str;

use super::ExchangeEvent;

/// In place of a credential.
const REDACTED: &str = "REDACTED";

/// A name with one of these in it is that of a credential.
const WORDS: [&str; 17] = [
    "token",
    "secret",
    "passw",
    "passphrase",
    "pwd",
    "authoriz",
    "authentic",
    "x-auth",
    "cookie",
    "credential",
    "session",
    "signature",
    "jwt",
    "saml",
    "assertion",
    "csrf",
    "xsrf",
];
/// So is one that ends in one of these: `X-Api-Key`, `apikey`, `X-GitHub-OTP`.
const ENDINGS: [&str; 5] = ["key", "-otp", "_otp", "-pin", "_pin"];
/// And these alone: `?sig=` of a shared-access signature, `?code=` of OAuth; Kubernetes clients send a bearer token as a
/// subprotocol of WebSocket.
const WHOLE: [&str; 14] = [
    "auth",
    "auth_code",
    "sig",
    "code",
    "device_code",
    "oobcode",
    "pass",
    "passcode",
    "sid",
    "pin",
    "otp",
    "hmac",
    "ticket",
    "sec-websocket-protocol",
];

/// Where a parameter begins and ends, in a URL and in fields with several.
const BETWEEN: [char; 12] = [
    '?', '#', '&', ';', ',', ' ', '\t', '"', '\'', '<', '>', '\\',
];

impl ExchangeEvent {
    /// Replaces the credentials of a request and its answer by `REDACTED`.
    ///
    /// ```
    /// use kubevpn_proxy::journal::ExchangeEvent;
    /// let mut exchange = ExchangeEvent {
    ///     url: "http://jane:secret@web/?token=secret&page=2".into(),
    ///     ..ExchangeEvent::default()
    /// };
    /// exchange.redact();
    /// assert_eq!(exchange.url, "http://REDACTED@web/?token=REDACTED&page=2");
    /// ```
    pub fn redact(&mut self) {
        self.url = redacted(&self.url);
        let heads = [&mut self.request, &mut self.response];
        for head in heads.into_iter().flatten() {
            for (name, value) in &mut head.fields {
                *value = match is_secret(name) {
                    true => REDACTED.to_owned(),
                    false => redacted(value),
                };
            }
        }
    }
}

fn is_secret(name: &str) -> bool {
    let name = percent_decode_str(name).decode_utf8_lossy();
    let name = name.trim().to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
        || ENDINGS.iter().any(|ending| name.ends_with(ending))
        || WHOLE.contains(&name.as_str())
}

/// A URL, or a text in which some may stand, with its credentials replaced by `REDACTED`.
pub fn redacted(text: &str) -> String {
    let text = without_users(text);
    let pieces = text.split_inclusive(BETWEEN);
    pieces.map(parameter).collect()
}

/// Replaces users and passwords in front of hosts.
fn without_users(mut rest: &str) -> String {
    let mut shown = String::with_capacity(rest.len());
    while let Some(at) = rest.find("://") {
        let (before, place) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = place.find(['/', '?', '#', ' ', '"', '<', '>']);
        let end = end.unwrap_or(place.len());
        // The colon of a scheme that follows is found again with its slashes.
        let scheme = place[..end].ends_with(':') && place[end..].starts_with("//");
        let (authority, after) = place.split_at(end - usize::from(scheme));
        match authority.rsplit_once('@') {
            Some((_, host)) => shown.extend([REDACTED, "@", host]),
            None => shown.push_str(authority),
        }
        rest = after;
    }
    shown + rest
}

/// A piece between two of [`BETWEEN`], with the second of these.
fn parameter(piece: &str) -> String {
    let end = piece.trim_end_matches(BETWEEN).len();
    let (parameter, between) = piece.split_at(end);
    let shown = match parameter.split_once('=') {
        Some((name, value)) if is_secret(name) || is_secret_value(value) => {
            format!("{name}={REDACTED}")
        }
        None if is_token(parameter) => REDACTED.to_owned(),
        _ => parameter.to_owned(),
    };
    shown + between
}

/// A value that is known without its name: a token, or a URL with a credential.
fn is_secret_value(value: &str) -> bool {
    if is_token(value) {
        return true;
    }
    let decoded = percent_decode_str(value).decode_utf8_lossy();
    (decoded != value || value.contains('=')) && redacted(&decoded) != decoded
}

/// A JSON web token: two objects in base64, and a signature.
fn is_token(value: &str) -> bool {
    value.starts_with("eyJ") && value.matches('.').count() >= 2
}

#[cfg(test)]
mod tests {
    use super::super::MessageHead;
    use super::*;

    #[test]
    fn credentials_of_urls() {
        for (url, shown) in [
            ("http://web/", "http://web/"),
            (
                "http://web/a@b?page=1&sort=up#top",
                "http://web/a@b?page=1&sort=up#top",
            ),
            ("http://jane:s3cret@web/x", "http://REDACTED@web/x"),
            ("http://jane:s3@cr;e&t@web:80", "http://REDACTED@web:80"),
            (
                "http://web/?access_token=s3cret&page=2",
                "http://web/?access_token=REDACTED&page=2",
            ),
            (
                "http://web/?page=2;api%5fkey=s3cret",
                "http://web/?page=2;api%5fkey=REDACTED",
            ),
            ("http://web/?%74oken=s3cret", "http://web/?%74oken=REDACTED"),
            (
                "http://web/?X-Amz-Signature=s3cret&sig=s3cret&code=s3cret",
                "http://web/?X-Amz-Signature=REDACTED&sig=REDACTED&code=REDACTED",
            ),
            (
                "http://web/#id_token=s3cret&state=x",
                "http://web/#id_token=REDACTED&state=x",
            ),
            (
                "http://web/?next=http%3A%2F%2Fjane%3As3cret%40api%2F",
                "http://web/?next=REDACTED",
            ),
            (
                "http://web/?next=%2Fx%3Ftoken%3Ds3cret",
                "http://web/?next=REDACTED",
            ),
            (
                "http://web/?next=%2Fx%3Fa%3Db",
                "http://web/?next=%2Fx%3Fa%3Db",
            ),
            ("http://web/?q=eyJh.eyJz.s3cret", "http://web/?q=REDACTED"),
            ("http://web/?a=token=s3cret", "http://web/?a=REDACTED"),
            ("http://web/?a=b=c", "http://web/?a=b=c"),
            (
                "http://web/?device_code=s3cret&oobCode=s3cret&hmac=s3cret&ticket=s3cret&passcode=s3cret",
                "http://web/?device_code=REDACTED&oobCode=REDACTED&hmac=REDACTED&ticket=REDACTED&passcode=REDACTED",
            ),
        ] {
            assert_eq!(redacted(url), shown, "{url}");
        }
    }

    #[test]
    fn credentials_of_fields() {
        let fields = [
            ("Authorization", "Bearer s3cret", "REDACTED"),
            ("proxy-authorization", "Basic s3cret", "REDACTED"),
            ("Cookie", "a=s3cret", "REDACTED"),
            ("Set-Cookie", "a=s3cret; HttpOnly", "REDACTED"),
            ("X-Api-Key", "s3cret", "REDACTED"),
            ("X-Forwarded-Access-Token", "s3cret", "REDACTED"),
            ("WWW-Authenticate", "Negotiate s3cret", "REDACTED"),
            (
                "Location",
                "https://web/cb?code=s3cret&state=x",
                "https://web/cb?code=REDACTED&state=x",
            ),
            ("Referer", "http://jane:s3cret@web/", "http://REDACTED@web/"),
            (
                "Link",
                "<http://a/?token=s3cret>; rel=next, <http://u:s3cret@b/>",
                "<http://a/?token=REDACTED>; rel=next, <http://REDACTED@b/>",
            ),
            ("X-User", "eyJh.eyJz.s3cret", "REDACTED"),
            ("Accept", "text/html;q=0.8, */*", "text/html;q=0.8, */*"),
            ("Keep-Alive", "timeout=5", "timeout=5"),
            (
                "Sec-WebSocket-Protocol",
                "base64url.bearer.authorization.k8s.io.s3cret, v4.channel.k8s.io",
                "REDACTED",
            ),
            ("X-GitHub-OTP", "s3cret", "REDACTED"),
            (
                "X-Servers",
                "http://a,http://u:s3cret@b",
                "http://a,http://REDACTED@b",
            ),
        ];
        let head = MessageHead {
            fields: fields
                .map(|(name, value, _)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            ..MessageHead::default()
        };
        let mut seen = ExchangeEvent {
            request: Some(head.clone()),
            response: Some(head),
            ..ExchangeEvent::default()
        };
        seen.redact();
        for head in [seen.request, seen.response] {
            let head = head.unwrap();
            assert_eq!(head.fields.len(), fields.len());
            for ((name, value), (_, before, shown)) in head.fields.iter().zip(fields) {
                assert_eq!(value, shown, "{name}: {before}");
                assert!(!value.contains("s3cret"));
            }
        }
    }
}
