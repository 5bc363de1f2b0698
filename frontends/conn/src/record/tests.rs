use super::*;
use std::cell::RefCell;
use std::io;
use std::sync::Once;

use kubevpn_target::Origin;

use crate::Side;

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes to the log of the thread: every test has one.
struct ThreadLog;

impl io::Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One subscriber for the process. Several, each for a moment, would race for what tracing caches about
/// who is interested in what.
fn subscribe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_ansi(false)
            .without_time()
            .with_writer(|| ThreadLog)
            .init();
    });
}

/// What is logged while `body` runs, inside a span that must not show.
fn logged(body: impl FnOnce()) -> String {
    subscribe();
    LOG.take();
    tracing::info_span!("surrounding").in_scope(body);
    String::from_utf8(LOG.take()).unwrap()
}

fn record() -> Record {
    Record::start(Frontend::Socks5, Some(([127, 0, 0, 1], 4711).into()))
}

fn relayed(end: End) -> Relayed {
    Relayed {
        up: 0,
        down: 0,
        last: Instant::now(),
        end,
    }
}

#[test]
fn one_line_with_everything() {
    let line = logged(|| {
        let mut record = record();
        let origin = Origin::default();
        record.target(&Target::parse("web.shop:80", origin).unwrap());
        record.via(Via {
            to: "shop/web-0:8080".into(),
            transport: "spdy",
        });
        record.traffic().add_up(3);
        record.traffic().add_down(4);
        record.relayed(&relayed(End::Eof));
    });
    assert_eq!(line.lines().count(), 1, "{line}");
    for part in [
        " INFO access: ",
        " id=",
        " frontend=\"socks5\"",
        " client.addr=127.0.0.1:4711",
        " target=web.shop:80",
        " via=shop/web-0:8080 (spdy)",
        " up=3 down=4 ",
        " seconds=",
        " end=\"eof\"",
    ] {
        assert!(format!(" {line}").contains(part), "{part} is not in {line}");
    }
    assert!(
        !line.contains("surrounding") && !line.contains("error"),
        "{line}"
    );
}

#[test]
fn levels_tell_who_should_act() {
    let refused = |refusal| {
        logged(|| {
            let cause = io::Error::other("the cause");
            record().refused(&ConnectError::new(refusal, "the sentence").with_source(cause));
        })
    };
    for refusal in Refusal::ALL {
        let line = refused(refusal);
        let level = match refusal {
            Refusal::NameNotFound | Refusal::NoSuchPort | Refusal::Denied => " INFO ",
            _ => " WARN ",
        };
        assert!(
            line.starts_with(level.trim_start()) || line.starts_with(level),
            "{line}"
        );
        assert!(line.contains(&format!("refusal=\"{refusal}\"")), "{line}");
        assert!(line.contains("end=\"refused\""), "{line}");
        assert!(line.contains("error=\"the sentence: the cause\""), "{line}");
    }
}

type Finish<'a> = Box<dyn FnOnce(Record) + 'a>;

#[test]
fn every_end_has_its_word() {
    let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
    let failed = |side| End::Failed {
        side,
        error: reset(),
    };
    let unsure = || End::Failed {
        side: Side::Upstream,
        error: io::ErrorKind::UnexpectedEof.into(),
    };
    let ends: [(&str, &str, Finish<'_>); 11] = [
        ("INFO", "idle", Box::new(|r| r.relayed(&relayed(End::Idle)))),
        ("INFO", "cut", Box::new(|r| r.relayed(&relayed(End::Cut)))),
        ("INFO", "cut", Box::new(|r| r.relayed(&relayed(unsure())))),
        (
            "INFO",
            "client",
            Box::new(|r| r.relayed(&relayed(failed(Side::Client)))),
        ),
        (
            "INFO",
            "upstream",
            Box::new(|r| r.relayed(&relayed(failed(Side::Upstream)))),
        ),
        ("INFO", "rejected", Box::new(|r| r.rejected(&reset()))),
        ("DEBUG", "gone", Box::new(|r| r.gone(&reset()))),
        (
            "INFO",
            "gone",
            Box::new(|mut record| {
                record.target(&Target::parse("web:80", Origin::default()).unwrap());
                record.gone(&reset());
            }),
        ),
        ("DEBUG", "unused", Box::new(Record::unused)),
        ("INFO", "cut", Box::new(drop)),
        (
            "WARN",
            "panicked",
            Box::new(|record| {
                let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let _record = record;
                    std::panic::resume_unwind(Box::new("a bug"));
                }));
                assert!(unwound.is_err());
            }),
        ),
    ];
    for (level, end, finish) in ends {
        let line = logged(|| finish(record()));
        assert_eq!(line.lines().count(), 1, "{end}: {line}");
        assert!(line.trim_start().starts_with(level), "{end}: {line}");
        assert!(line.contains(&format!("end=\"{end}\"")), "{end}: {line}");
    }
}

#[test]
fn numbers_are_distinct() {
    assert_ne!(record().id(), record().id());
}

#[test]
fn a_cause_that_its_wrapper_quotes_counts_once() {
    let cause = io::Error::other("the connection was dropped");
    let pod = ConnectError::new(Refusal::Unreachable, "no port-forward").with_source(cause);
    let sentence = format!("none of 2 endpoints, the last one: {pod}");
    let all = ConnectError::new(Refusal::Unreachable, sentence).with_source(pod);
    assert_eq!(
        chain(&all),
        "none of 2 endpoints, the last one: no port-forward: the connection was dropped"
    );
}
