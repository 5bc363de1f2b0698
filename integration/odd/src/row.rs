//! One odd thing: a client's bytes, a server's bytes, and what is right.

use crate::client::{ConnectionEnd, Do, Heard};
use crate::message::{Message, field, status};
use crate::server::{Saw, Say, Then};

/// A request or an answer that is odd but real.
#[derive(Clone, Debug)]
pub struct OddRow {
    pub name: String,
    /// The section that says what is right.
    pub rule: &'static str,
    pub(crate) does: Vec<Do>,
    pub(crate) says: Vec<Say>,
    pub(crate) wants: Vec<Want>,
    /// Means nothing without a proxy.
    pub(crate) proxied: bool,
    /// Why ours does worse than another.
    pub because: Option<&'static str>,
}

/// One thing that has to be so.
#[derive(Clone, Debug)]
pub(crate) enum Want {
    /// The status of the first answer.
    Status(u16),
    Body(Vec<u8>),
    /// The first answer's head has this, letter by letter.
    Says(String),
    SaysNot(String),
    /// The value of a field of the first answer.
    Field(&'static str, String),
    Trailer(&'static str),
    Interim(u16),
    /// So many whole answers.
    Answers(usize),
    /// An answer that is not whole cannot pass for one that is: 5xx in its place, or an end that shows it.
    Cut,
    /// The client reads these bytes that are no answer.
    Raw(Vec<u8>),
    /// The head of the first request has this, letter by letter.
    Server(String),
    ServerNot(String),
    ServerField(&'static str, String),
    ServerBody(Vec<u8>),
    ServerTrailer(&'static str),
    ServerRest(Vec<u8>),
    /// So many requests.
    Requests(usize),
    /// On so many connections.
    Connections(usize),
    /// The client is told no, or its connection ends, and nothing of it reaches the server.
    Refused,
    /// As `Refused`, with a text for a person.
    Told(&'static str),
    /// One of these statuses, or the first want: where RFCs leave a choice.
    Or(Box<[Self; 2]>),
    /// The connection is still there for the next request.
    Stays,
}

/// What was heard and seen of one row on one way.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowOutcome {
    pub(crate) heard: Heard,
    pub(crate) saw: Saw,
}

impl OddRow {
    pub(crate) fn new(name: impl Into<String>, rule: &'static str) -> Self {
        Self {
            name: name.into(),
            rule,
            does: Vec::new(),
            says: Vec::new(),
            wants: Vec::new(),
            proxied: false,
            because: None,
        }
        .with("")
    }

    /// A GET with these lines behind its Host, and a plain answer.
    pub(crate) fn with(self, fields: &str) -> Self {
        self.send(format!(
            "GET {{http}}/ HTTP/1.1\r\nHost: {{host}}\r\n{fields}\r\n"
        ))
    }

    /// These bytes are all that the client sends.
    pub(crate) fn send(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.does(vec![Do::Send(bytes.into()), Do::Hear])
    }

    pub(crate) fn does(mut self, does: Vec<Do>) -> Self {
        self.does = does;
        self
    }

    /// The server's answer; the default is a plain one. Called again: to the next request.
    pub(crate) fn says(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.says.push(Say {
            bytes: bytes.into(),
            early: false,
            drip: false,
            then: Then::Stay,
        });
        self
    }

    /// A 200 with these lines, and "ok" in two bytes.
    pub(crate) fn says_with(self, fields: &str) -> Self {
        self.says(format!("HTTP/1.1 200 OK\r\n{fields}\r\nok"))
    }

    pub(crate) fn then(mut self, then: Then) -> Self {
        self.last().then = then;
        self
    }

    pub(crate) fn closes(self) -> Self {
        self.then(Then::Close)
    }

    /// The answer does not wait for the request's body.
    pub(crate) fn early(mut self) -> Self {
        self.last().early = true;
        self
    }

    pub(crate) fn drips(mut self) -> Self {
        self.last().drip = true;
        self
    }

    fn last(&mut self) -> &mut Say {
        if self.says.is_empty() {
            self.says.push(plain());
        }
        let last = self.says.len() - 1;
        &mut self.says[last]
    }

    pub(crate) fn want(mut self, want: Want) -> Self {
        self.wants.push(want);
        self
    }

    /// The plain answer arrives.
    pub(crate) fn ok(self) -> Self {
        self.want(Want::Status(200)).want(Want::Body(b"ok".into()))
    }

    pub(crate) fn status(self, status: u16) -> Self {
        self.want(Want::Status(status))
    }

    pub(crate) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        self.want(Want::Body(body.into()))
    }

    pub(crate) fn hears(self, text: &str) -> Self {
        self.want(Want::Says(text.into()))
    }

    pub(crate) fn hears_field(self, name: &'static str, value: &str) -> Self {
        self.want(Want::Field(name, value.into()))
    }

    /// The server sees this in the head.
    pub(crate) fn sees(self, text: &str) -> Self {
        self.want(Want::Server(text.into()))
    }

    pub(crate) fn sees_not(self, text: &str) -> Self {
        self.want(Want::ServerNot(text.into()))
    }

    pub(crate) fn sees_field(self, name: &'static str, value: &str) -> Self {
        self.want(Want::ServerField(name, value.into()))
    }

    pub(crate) fn sees_body(self, body: impl Into<Vec<u8>>) -> Self {
        self.want(Want::ServerBody(body.into()))
    }

    pub(crate) fn refused(self) -> Self {
        self.want(Want::Refused)
    }

    /// And the next request on the connection is answered.
    pub(crate) fn stays(mut self) -> Self {
        if !self.says.is_empty() {
            self.says.push(plain());
        }
        self.does.push(Do::Send(
            b"GET {http}/next HTTP/1.1\r\nHost: {host}\r\n\r\n".to_vec(),
        ));
        self.does.push(Do::Hear);
        self.want(Want::Stays)
    }

    /// All of it once more on the same connection.
    pub(crate) fn twice(mut self) -> Self {
        self.does.extend(self.does.clone());
        self
    }

    pub(crate) fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    pub(crate) fn because(mut self, why: &'static str) -> Self {
        self.because = Some(why);
        self
    }
}

/// What a server says that is not what the row is about.
pub(crate) fn plain() -> Say {
    Say {
        bytes: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
        early: false,
        drip: false,
        then: Then::Stay,
    }
}

impl Want {
    /// `None` if it is so, else what is in its place.
    pub(crate) fn misses(&self, it: &RowOutcome, fill: &dyn Fn(&str) -> String) -> Option<String> {
        let answer = it.heard.answers.first();
        let request = it.saw.requests.first();
        let head = answer.map(|a| String::from_utf8_lossy(&a.head).into_owned());
        let asked = request.map(|r| String::from_utf8_lossy(&r.head).into_owned());
        let nothing = || match (&it.heard.ended, answer) {
            (_, Some(answer)) => status(&answer.head).to_string(),
            (Some(ConnectionEnd::Closed), _) => "closed".into(),
            (Some(ConnectionEnd::Reset), _) => "reset".into(),
            (Some(ConnectionEnd::Silent), _) => "no answer".into(),
            (None, _) => "nothing".into(),
        };
        let miss = |so: bool, what: &dyn Fn() -> String| (!so).then(what);
        match self {
            Self::Status(wanted) => {
                let got = answer.map(|a| status(&a.head));
                miss(got == Some(*wanted), &nothing)
            }
            Self::Body(body) => {
                let whole = answer.is_some_and(|a| a.whole && a.body == *body);
                miss(whole, &|| match answer {
                    Some(a) if a.body == *body => "end not marked".into(),
                    Some(a) => format!("{}, {} bytes", status(&a.head), a.body.len()),
                    None => nothing(),
                })
            }
            Self::Says(text) => miss(has(&head, text), &|| match &head {
                Some(_) => format!("no `{}`", text.trim()),
                None => nothing(),
            }),
            Self::SaysNot(text) => miss(head.is_some() && !has(&head, text), &|| match &head {
                Some(_) => format!("`{}`", text.trim()),
                None => nothing(),
            }),
            Self::Field(name, value) => {
                let got = answer.and_then(|a| field(&a.head, name));
                miss(got.as_ref() == Some(value), &|| match (&got, answer) {
                    (Some(got), _) => format!("{name}: {}", short(got)),
                    (None, Some(a)) if status(&a.head) == 200 => format!("no {name}"),
                    _ => nothing(),
                })
            }
            Self::Trailer(name) => {
                let it = answer.map(|a| String::from_utf8_lossy(&a.trailers).to_lowercase());
                let so = it.is_some_and(|t| t.contains(&name.to_lowercase()));
                miss(so, &|| "no trailer".into())
            }
            Self::Interim(wanted) => {
                let so = it.heard.interim.iter().any(|head| status(head) == *wanted);
                miss(so, &|| format!("no {wanted}"))
            }
            Self::Answers(n) => {
                let whole = it.heard.answers.iter().filter(|a| a.whole).count();
                miss(whole == *n, &|| format!("{whole} answers"))
            }
            Self::Cut => {
                let passes = |a: &Message| a.whole && status(&a.head) < 500;
                let so = !it.heard.answers.iter().any(passes);
                let silent = it.heard.ended == Some(ConnectionEnd::Silent);
                miss(so && !silent, &|| match silent {
                    true => "no end".into(),
                    false => "passes for whole".into(),
                })
            }
            Self::Raw(bytes) => miss(it.heard.raw == *bytes, &|| match it.heard.raw.is_empty() {
                true => nothing(),
                false => format!("`{}`", short(&String::from_utf8_lossy(&it.heard.raw))),
            }),
            Self::Server(text) => {
                let text = fill(text);
                miss(has(&asked, &text), &|| match &asked {
                    Some(_) => format!("server gets no `{}`", short(text.trim())),
                    None => nothing(),
                })
            }
            Self::ServerNot(text) => {
                let text = fill(text);
                miss(asked.is_some() && !has(&asked, &text), &|| match &asked {
                    Some(_) => format!("server gets `{}`", short(text.trim())),
                    None => nothing(),
                })
            }
            Self::ServerField(name, value) => {
                let got = request.and_then(|r| field(&r.head, name));
                miss(
                    got.as_ref() == Some(&fill(value)),
                    &|| match (&got, request) {
                        (Some(got), _) => format!("server gets {name}: {}", short(got)),
                        (None, Some(_)) => format!("server gets no {name}"),
                        (None, None) => nothing(),
                    },
                )
            }
            Self::ServerBody(body) => {
                let so = request.is_some_and(|r| r.body == *body);
                miss(so, &|| match request {
                    Some(r) => format!("server gets {} bytes", r.body.len()),
                    None => nothing(),
                })
            }
            Self::ServerTrailer(name) => {
                let it = request.map(|r| String::from_utf8_lossy(&r.trailers).to_lowercase());
                let so = it.is_some_and(|t| t.contains(&name.to_lowercase()));
                miss(so, &|| "no trailer".into())
            }
            Self::ServerRest(bytes) => miss(it.saw.rest == *bytes, &|| {
                format!("server gets {} bytes", it.saw.rest.len())
            }),
            Self::Requests(n) => miss(it.saw.requests.len() == *n, &|| {
                format!("server gets {} requests", it.saw.requests.len())
            }),
            Self::Connections(n) => miss(it.saw.connections == *n, &|| {
                format!("{} connections", it.saw.connections)
            }),
            Self::Refused => {
                let no = answer.is_none_or(|a| status(&a.head) >= 400);
                let silent = it.heard.ended == Some(ConnectionEnd::Silent) && answer.is_none();
                let so = no && !silent && it.saw.requests.is_empty();
                miss(so, &|| match it.saw.requests.is_empty() {
                    true => nothing(),
                    false => "sent on".into(),
                })
            }
            Self::Told(word) => {
                let text = answer.map(|a| String::from_utf8_lossy(&a.body).to_lowercase());
                let so = text.is_some_and(|text| text.contains(&word.to_lowercase()));
                miss(so, &|| format!("{}, no `{word}`", nothing()))
            }
            Self::Or(two) => {
                let first = two[0].misses(it, fill)?;
                two[1].misses(it, fill).map(|_| first)
            }
            Self::Stays => {
                let so = it.heard.answers.len() > 1 && it.heard.answers[1].whole;
                miss(so, &|| "connection ends".into())
            }
        }
    }
}

fn has(head: &Option<String>, text: &str) -> bool {
    head.as_ref().is_some_and(|head| head.contains(text))
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
