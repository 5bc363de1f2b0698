//! Credentials in what is shown and recorded of HTTP requests.
//!
//! Credentials are recognised by their names, in header fields, in the parameters of URLs and in JSON, and by their place in
//! front of a host. A credential in a path, or under any other name, is not recognised.
//!
//! The work is linear in the length of the text, which a client chooses.

use std::borrow::Cow;

use kubevpn_conn::Exchange;
use percent_encoding::percent_decode_str;

use super::ExchangeEvent;

/// In place of a credential.
const REDACTED: &str = "REDACTED";

/// Percent-encodings that are undone, one inside the other. A value with more of them is taken for a credential.
const DEPTH: usize = 4;

/// A name with one of these in it is that of a credential.
const WORDS: [&str; 18] = [
    "token",
    "bearer",
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
/// So is one that ends in one of these: `X-Api-Key`, `apikey`, `X-GitHub-OTP`, `totp`, `code_verifier`.
const ENDINGS: [&str; 7] = ["key", "otp", "-pin", "_pin", "-pw", "_pw", "verifier"];
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
    "pw",
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
    // `pin` of `user[pin]` and of `user.pin`.
    let last = name.trim_end_matches(['[', ']']).rsplit(['[', '.']).next();
    let last = last.unwrap_or_default();
    WORDS.iter().any(|word| name.contains(word))
        || ENDINGS.iter().any(|ending| last.ends_with(ending))
        || WHOLE.contains(&last)
}

/// A URL, or a text in which some may stand, with its credentials replaced by `REDACTED`.
pub fn redacted(text: &str) -> String {
    redacted_within(text, 0)
}

/// The same of a text inside so many encodings.
fn redacted_within(text: &str, depth: usize) -> String {
    let text = without_users(text);
    let mut shown = String::with_capacity(text.len());
    // Whether the last word is the quoted name of a credential, as in JSON.
    let mut is_named = false;
    // Whether the value that was replaced last may go on.
    let mut is_open = false;
    for piece in text.split_inclusive(BETWEEN) {
        let word = piece.trim_end_matches(BETWEEN);
        let between = &piece[word.len()..];
        let goes_on = matches!(between, "," | ";" | "'");
        if is_open {
            is_open = goes_on;
            if !goes_on {
                shown.push_str(between);
            }
            is_named = false;
            continue;
        }
        if is_named && word.starts_with(':') {
            // Where its value ends is not known without a parser of JSON, and the text may be a part of one.
            return shown + ":" + REDACTED;
        }
        is_named = (is_named && word.is_empty())
            || (piece.ends_with(['"', '\'', '\\']) && is_secret(word));
        let part = parameter(word, depth);
        is_open = goes_on && part != word;
        shown.push_str(&part);
        shown.push_str(between);
    }
    shown
}

/// Replaces users and passwords in front of hosts, also after `\/\/`, as JSON may write the slashes.
fn without_users(mut rest: &str) -> String {
    let mut shown = String::with_capacity(rest.len());
    while let Some(at) = rest.find('/') {
        let (before, place) = rest.split_at(at);
        shown.push_str(before);
        // Others are empty segments of a path.
        let begins = |c| c == ':' || c == '=' || BETWEEN.contains(&c);
        let place = place.trim_start_matches(['/', '\\']);
        let slashes = &rest[at..rest.len() - place.len()];
        shown.push_str(slashes);
        let before = shown[..shown.len() - slashes.len()].chars().next_back();
        let is_host = slashes.matches('/').count() > 1
            && (slashes.contains('\\') || before.is_none_or(begins));
        let end = match is_host {
            true => place.find(['/', '?', '#', ' ', '"', '<', '>']),
            false => Some(0),
        };
        let (authority, after) = place.split_at(end.unwrap_or(place.len()));
        match authority.rsplit_once('@') {
            Some((_, host)) => shown.extend([REDACTED, "@", host]),
            // The end of a password and its host may have been cut off.
            None if authority.ends_with(Exchange::CUT) => shown.push_str(REDACTED),
            None => shown.push_str(authority),
        }
        rest = after;
    }
    shown + rest
}

/// The text between two of [`BETWEEN`].
fn parameter(text: &str, depth: usize) -> Cow<'_, str> {
    match text.split_once('=') {
        Some((name, value)) if is_secret(name) || is_secret_value(value, depth) => {
            format!("{name}={REDACTED}").into()
        }
        None if is_secret_value(text, depth) => {
            let plain = text.split('%').next().filter(|plain| !is_token(plain));
            format!("{}{REDACTED}", plain.unwrap_or_default()).into()
        }
        _ => text.into(),
    }
}

/// A value that is known without its name: a token, a further parameter, or an encoded text with a credential.
fn is_secret_value(value: &str, depth: usize) -> bool {
    let names = value.rsplit_once('=').map(|(names, _)| names);
    if names.is_some_and(|names| names.split('=').any(is_secret)) || value.split('=').any(is_token)
    {
        return true;
    }
    let decoded = percent_decode_str(value).decode_utf8_lossy();
    decoded != value && (depth == DEPTH || redacted_within(&decoded, depth + 1) != decoded)
}

/// A JSON web token: two objects in base64, and a signature, of which all but the first may be cut off.
fn is_token(value: &str) -> bool {
    value.starts_with("eyJ") && (value.ends_with(Exchange::CUT) || value.matches('.').count() >= 2)
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
            (
                "http://web/?pw=s3cret&bearer=s3cret&oauth_verifier=s3cret&codeVerifier=s3cret&totp=s3cret",
                "http://web/?pw=REDACTED&bearer=REDACTED&oauth_verifier=REDACTED&codeVerifier=REDACTED&totp=REDACTED",
            ),
            (
                "http://web/?user[pin]=s3cret&login.pw=s3cret&user%5Bpass%5D=s3cret",
                "http://web/?user[pin]=REDACTED&login.pw=REDACTED&user%5Bpass%5D=REDACTED",
            ),
            (
                "http://web/?next=//jane:s3cret@api/&page=2",
                "http://web/?next=//REDACTED@api/&page=2",
            ),
            (
                "http://web/?next=%2F%2Fjane%3As3cret%40api%2F",
                "http://web/?next=REDACTED",
            ),
            ("http://web//a@b/c", "http://web//a@b/c"),
            (
                "http://web/?next=///u:s3cret@h",
                "http://web/?next=///REDACTED@h",
            ),
            (r"x/\//u:s3cret@h", r"x/\//REDACTED@h"),
            (r"/\//u:s3cret@h", r"/\//REDACTED@h"),
            (
                r#"http://web/?variables={"user":"jane","password":"s3cret"}&page=2"#,
                r#"http://web/?variables={"user":"jane","password":REDACTED"#,
            ),
            (
                "http://web/?variables={%22password%22:%22s3cret%22}&page=2",
                "http://web/?variables=REDACTED&page=2",
            ),
            (
                "http://web/?%7B%22password%22%3A%20%22s3cret%22%7D",
                "http://web/?REDACTED",
            ),
            (
                "http://web/?variables={%22page%22:%222%22}",
                "http://web/?variables={%22page%22:%222%22}",
            ),
            ("http://sessions.shop:80/", "http://sessions.shop:80/"),
            (
                "http://web/?a=b%252525253D&token=s3cret",
                "http://web/?a=REDACTED&token=REDACTED",
            ),
            ("http://web/?a=b%25253D", "http://web/?a=b%25253D"),
            ("http://jane:s3cret…", "http://REDACTED"),
            ("http://web/?q=eyJhs3cret…", "http://web/?q=REDACTED"),
            (
                "http://web/?next=http%3A%2F%2Fjane%3As3cret%2…",
                "http://web/?next=REDACTED",
            ),
            ("http://web/?page=2…", "http://web/?page=2…"),
            (
                "http://web/?password=s3,cr;et&page=2",
                "http://web/?password=REDACTED,&page=2",
            ),
            (
                "http://web/?v={%22auth%22:{%22user%22:%22jane%22,%22x%22:%22s3cret%22}}&page=2",
                "http://web/?v=REDACTED,&page=2",
            ),
            (
                "http://web/?v={%22password%22:%22s3,cret%22}",
                "http://web/?v=REDACTED,",
            ),
        ] {
            assert_eq!(redacted(url), shown, "{url}");
        }
    }

    /// The longest heads that a client can send, in which each level would have a further one, on a worker's stack.
    #[test]
    fn work_and_depth_are_bounded() {
        let worker = std::thread::Builder::new().stack_size(2 << 20);
        let redacting = worker.spawn(|| {
            for unit in [
                "=", "a=", "a=%", "%3D", "%25", "//", "http://", "a@", "=//", "\"a\":", "[", ".",
                "eyJ.", "/", "/\\", "\\/",
            ] {
                let url = format!("http://web/?{}", unit.repeat(65_000 / unit.len()));
                let begun = redacted(&url);
                assert!(begun.len() <= url.len() + REDACTED.len(), "{unit}");
            }
            let mut nested = "token=s3cret".to_owned();
            while nested.len() < 65_000 {
                nested = format!("a={}", nested.replace('%', "%25").replace('=', "%3D"));
            }
            assert_eq!(redacted(&format!("?{nested}")), "?a=REDACTED");
        });
        redacting.unwrap().join().unwrap();
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
            ("Location", "//jane:s3cret@web/", "//REDACTED@web/"),
            (
                "Link",
                "<//u:s3cret@a/>; rel=next,//u:s3cret@b",
                "<//REDACTED@a/>; rel=next,//REDACTED@b",
            ),
            (
                "X-Input",
                r#"{ "user": "jane", "pin" : 53, "x": "s3cret" }"#,
                r#"{ "user": "jane", "pin" :REDACTED"#,
            ),
            (
                "X-Input",
                r#""{\"auth\":{\"a\":\"s3cret\"}}""#,
                r#""{\"auth\":REDACTED"#,
            ),
            ("X-Input", "{'password': 's3cret'}", "{'password':REDACTED"),
            (
                "X-Input",
                r#"{"url":"http:\/\/jane:s3cret@web\/x\/y"}"#,
                r#"{"url":"http:\/\/REDACTED@web\/x\/y"}"#,
            ),
            (
                "X-Input",
                r#""{\"url\":\"http:\\\/\\\/jane:s3cret@web\"}""#,
                r#""{\"url\":\"http:\\\/\\\/REDACTED@web\"}""#,
            ),
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
