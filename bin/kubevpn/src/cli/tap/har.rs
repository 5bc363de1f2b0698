//! HTTP requests as a HAR file: <http://www.softwareishard.com/blog/har-12-spec/>.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use http::StatusCode;
use kubevpn_daemon::{ApiError, Code};
use kubevpn_proxy::journal::{EndedConnection, ExchangeEvent, MessageHead};
use serde_json::{Value, json};

use crate::exit::Failure;

/// Upper bound on the size of a recording: Chromium's developer tools open such a file in a few seconds.
const MOST_BYTES: u64 = 64 << 20;
/// End of the document, after the last entry.
const TAIL: &str = "\n]}}\n";

/// A file to which requests are added. It is a complete document after each one; only a kill during a write can truncate it.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) path: PathBuf,
    file: File,
    /// Offset of the tail, where the next entry is written.
    end: u64,
    limit: u64,
    pub(super) entries: u64,
    /// Number of requests that did not fit.
    pub(super) left_out: u64,
}

impl Recording {
    /// Creates the file, readable by its owner alone. An existing file or link of this name is kept unless `overwrite` is set;
    /// then the name gets a new file.
    pub(super) fn create(path: &Path, overwrite: bool) -> Result<Self, Failure> {
        let created = match overwrite {
            true => replace(path),
            false => create(path),
        };
        let recording = created.map(|(file, end)| Self {
            path: path.to_owned(),
            file,
            end,
            limit: MOST_BYTES,
            entries: 0,
            left_out: 0,
        });
        recording.map_err(|error| {
            let said = format!("--record: cannot create {}: {error}", path.display());
            match error.kind() {
                ErrorKind::AlreadyExists => Failure::Advised {
                    error: ApiError::new(Code::InvalidValue, said),
                    advice: "--overwrite, which replaces it, or another name".to_owned(),
                },
                _ => Failure::value(said),
            }
        })
    }

    /// Adds a request; true if it is the first that does not fit.
    pub(super) fn add(
        &mut self,
        seen: &EndedConnection<'_>,
        exchange: &ExchangeEvent,
    ) -> Result<bool, Failure> {
        let separator = if self.entries == 0 { "\n" } else { ",\n" };
        let text = format!("{separator}{}{TAIL}", entry(seen, exchange));
        let end = self.end + text.len() as u64;
        // Requests after the first that did not fit are left out too, so that the recording has no gap.
        if self.left_out > 0 || end > self.limit {
            self.left_out += 1;
            return Ok(self.left_out == 1);
        }
        if let Err(error) = self.file.write_all_at(text.as_bytes(), self.end) {
            // The incomplete entry is overwritten by the tail, so that the file stays readable.
            let _ = self.file.write_all_at(TAIL.as_bytes(), self.end);
            let _ = self.file.set_len(self.end + TAIL.len() as u64);
            let what = format!("--record: cannot write {}", self.path.display());
            return Err(anyhow::Error::new(error).context(what).into());
        }
        self.end = end - TAIL.len() as u64;
        self.entries += 1;
        Ok(false)
    }
}

/// Writes a document without entries, and returns the offset of its tail.
fn begin(file: &File) -> io::Result<u64> {
    let creator = json!({"name": "kubevpn", "version": env!("CARGO_PKG_VERSION")});
    let comment = "heads of requests, without bodies";
    let begin = format!(
        r#"{{"log":{{"version":"1.2","creator":{creator},"comment":"{comment}","entries":["#
    );
    file.write_all_at(format!("{begin}{TAIL}").as_bytes(), 0)?;
    Ok(begin.len() as u64)
}

/// Creates a file of a new name, and begins it.
fn create(path: &Path) -> io::Result<(File, u64)> {
    let mut options = File::options();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    match begin(&file) {
        Ok(end) => Ok((file, end)),
        Err(error) => {
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// Begins a new file, and puts it in place of an existing one. A link is replaced and not followed.
fn replace(path: &Path) -> io::Result<(File, u64)> {
    let kind = std::fs::symlink_metadata(path).map(|found| found.file_type());
    if kind.is_ok_and(|kind| !kind.is_file() && !kind.is_symlink()) {
        let why = "it is neither a file nor a link";
        return Err(io::Error::new(ErrorKind::InvalidInput, why));
    }
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let file = tempfile::Builder::new()
        .prefix(".kubevpn-")
        .tempfile_in(parent.unwrap_or_else(|| Path::new(".")))?;
    let end = begin(file.as_file())?;
    Ok((file.persist(path)?, end))
}

fn entry(seen: &EndedConnection<'_>, exchange: &ExchangeEvent) -> Value {
    let dialled = exchange.dialled.unwrap_or_default();
    let waited = exchange.waited.unwrap_or(seen.seconds);
    let connect = milliseconds(dialled);
    let wait = milliseconds(waited - dialled);
    let receive = milliseconds(seen.seconds - waited);
    let mut entry = json!({
        "startedDateTime": exchange.began,
        "time": connect + wait + receive,
        "request": request(seen, exchange),
        "response": response(seen, exchange),
        "cache": {},
        "timings": {
            "blocked": -1,
            "dns": -1,
            "connect": exchange.dialled.map_or(-1.0, |_| connect),
            "ssl": -1,
            "send": 0,
            "wait": wait,
            "receive": receive,
        },
        "connection": seen.id.to_string(),
        "_end": seen.end,
    });
    let more = [
        ("_pod", Some(seen.via).filter(|via| !via.is_empty())),
        ("_refusal", seen.refusal),
        ("_error", seen.error),
    ];
    for (name, value) in more {
        if let Some(value) = value {
            entry[name] = value.into();
        }
    }
    entry
}

fn request(seen: &EndedConnection<'_>, exchange: &ExchangeEvent) -> Value {
    let query = exchange.url.split('#').next().unwrap_or_default();
    let query = query.split_once('?').map_or("", |(_, query)| query);
    let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
    let query: Vec<_> = parameters
        .map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            json!({"name": name, "value": value})
        })
        .collect();
    let mut request = json!({
        "method": exchange.method,
        "url": exchange.url,
        "httpVersion": version(exchange.request.as_ref()),
        "cookies": [],
        "headers": fields(exchange.request.as_ref()),
        "queryString": query,
        "headersSize": -1,
        "bodySize": seen.up,
    });
    comment(&mut request, exchange.request.as_ref());
    request
}

fn response(seen: &EndedConnection<'_>, exchange: &ExchangeEvent) -> Value {
    let head = exchange.response.as_ref();
    let field = |wanted: &str| {
        let fields = head.map_or(&[][..], |head| &head.fields);
        let mut values = fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        values.next().map(|(_, value)| value.as_str())
    };
    // Browsers write status 0 for a request without an answer.
    let status = exchange.status.unwrap_or_default();
    let reason = StatusCode::from_u16(status).ok();
    let reason = reason.and_then(|status| status.canonical_reason());
    let mut response = json!({
        "status": status,
        "statusText": reason.unwrap_or_default(),
        "httpVersion": version(head),
        "cookies": [],
        "headers": fields(head),
        "content": {
            "size": seen.down,
            "mimeType": field("content-type").unwrap_or("x-unknown"),
            "comment": "not recorded",
        },
        "redirectURL": field("location").unwrap_or_default(),
        "headersSize": -1,
        "bodySize": seen.down,
    });
    comment(&mut response, head);
    response
}

fn version(head: Option<&MessageHead>) -> &str {
    head.map_or("HTTP/1.1", |head| &head.version)
}

fn fields(head: Option<&MessageHead>) -> Vec<Value> {
    let fields = head.map_or(&[][..], |head| &head.fields);
    let field = |(name, value): &(String, String)| json!({"name": name, "value": value});
    fields.iter().map(field).collect()
}

fn comment(message: &mut Value, head: Option<&MessageHead>) {
    if head.is_some_and(|head| !head.is_whole) {
        message["comment"] = "fields beyond 16 KiB are left out".into();
    }
}

/// Milliseconds, rounded to a microsecond: two clocks may disagree by less.
fn milliseconds(seconds: f64) -> f64 {
    (seconds.max(0.0) * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use kubevpn_proxy::journal::JournalEvent;

    use super::super::tests::{refused, request as stamped};
    use super::*;
    use crate::exit::exit_code;

    fn schema() -> jsonschema::Validator {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../integration/tests/golden/har-1.2.schema.json");
        let schema = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        jsonschema::validator_for(&schema).unwrap()
    }

    #[track_caller]
    fn read(path: &Path) -> Value {
        let document = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let schema = schema();
        let errors = schema.iter_errors(&document).map(|error| error.to_string());
        assert_eq!(errors.collect::<Vec<_>>(), Vec::<String>::new());
        document
    }

    #[test]
    fn schema_refuses_what_is_no_har() {
        let without_timings = json!({"log": {
            "version": "1.2",
            "creator": {"name": "x", "version": "1"},
            "entries": [{"startedDateTime": "2026-11-30T21:05:03Z", "time": 1, "request": {}, "response": {}, "cache": {}}],
        }});
        assert!(!schema().is_valid(&without_timings));
        assert!(!schema().is_valid(&json!({"log": {}})));
    }

    #[test]
    fn file_is_whole_after_each_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("requests.har");
        let mut recording = Recording::create(&path, false).unwrap();
        assert_eq!(read(&path)["log"]["entries"], json!([]));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut whole = stamped();
        let JournalEvent::ConnectionClosed {
            exchange: Some(exchange),
            ..
        } = &mut whole.event
        else {
            unreachable!()
        };
        exchange.response = Some(MessageHead {
            version: "HTTP/1.1".into(),
            fields: vec![("content-type".into(), "text/plain".into())],
            is_whole: false,
        });
        let seen = EndedConnection::of(&whole).unwrap();
        assert!(!recording.add(&seen, seen.exchange.unwrap()).unwrap());
        let entry = &read(&path)["log"]["entries"][0];
        assert_eq!(entry["time"], 12.3);
        let timings = &entry["timings"];
        assert_eq!(timings["connect"], 4.0);
        assert_eq!(timings["wait"], 6.0);
        assert_eq!(timings["receive"], 2.3);
        assert_eq!(entry["_pod"], "shop/web-0:8080");
        assert_eq!(
            entry["request"]["queryString"],
            json!([{"name": "page", "value": "1"}])
        );
        assert_eq!(entry["response"]["statusText"], "OK");
        assert_eq!(entry["response"]["content"]["mimeType"], "text/plain");
        assert!(entry["response"]["comment"].is_string());

        // A request that was refused and has no answer.
        let mut none = refused();
        let JournalEvent::ConnectionRefused { exchange, .. } = &mut none.event else {
            unreachable!()
        };
        *exchange = Some(ExchangeEvent {
            method: "GET".into(),
            url: "http://web:81/".into(),
            began: "2026-11-30T21:05:01Z".into(),
            ..ExchangeEvent::default()
        });
        let seen = EndedConnection::of(&none).unwrap();
        recording.add(&seen, seen.exchange.unwrap()).unwrap();
        let entry = &read(&path)["log"]["entries"][1];
        assert_eq!(entry["response"]["status"], 0);
        assert_eq!(entry["timings"]["connect"], -1.0);
        assert_eq!(entry["_refusal"], "no_such_port");
    }

    #[test]
    fn full_file_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("requests.har");
        let mut recording = Recording::create(&path, false).unwrap();
        recording.limit = 3000;
        let stamped = stamped();
        let seen = EndedConnection::of(&stamped).unwrap();
        let full: Vec<_> = (0..10)
            .map(|_| recording.add(&seen, seen.exchange.unwrap()).unwrap())
            .collect();
        assert_eq!(full.iter().filter(|is_full| **is_full).count(), 1);
        let entries = read(&path)["log"]["entries"].as_array().unwrap().len() as u64;
        assert!(entries > 1, "{entries}");
        assert_eq!(recording.entries, entries);
        assert_eq!(recording.left_out, 10 - entries);
        assert!(std::fs::metadata(&path).unwrap().len() <= 3000);
    }

    #[test]
    fn what_is_there_is_replaced_only_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        let dangling = dir.path().join("dangling");
        std::fs::write(&other, "other").unwrap();
        std::fs::write(&file, "file").unwrap();
        symlink(&other, &link).unwrap();
        symlink(dir.path().join("nowhere"), &dangling).unwrap();
        for path in [&file, &link, &dangling] {
            let failure = Recording::create(path, false).unwrap_err();
            assert_eq!(exit_code(&failure), 23);
            assert!(matches!(failure, Failure::Advised { .. }), "{failure:?}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"file");
        assert!(!dir.path().join("nowhere").exists());
        for path in [&file, &link, &dangling] {
            Recording::create(path, true).unwrap();
            let found = std::fs::symlink_metadata(path).unwrap();
            assert!(found.is_file());
            assert_eq!(found.permissions().mode() & 0o777, 0o600);
            read(path);
        }
        // The link was replaced, and the file that it pointed to is unchanged.
        assert_eq!(std::fs::read(&other).unwrap(), b"other");
        assert!(!dir.path().join("nowhere").exists());
    }
}
