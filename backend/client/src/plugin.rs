//! Runs a credential plugin: its input, its time limit, and its answer.
//!
//! Source: kubernetes.io "client-go credential plugins". Its standard output is used for nothing else, and parser errors are
//! not passed on, because they would quote it.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::join;
use jiff::Timestamp;
use kube::config::{ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::json;
use serde_saphyr::options::DuplicateKeyPolicy;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::credential::{self, Credential};
use crate::error::{PluginError, PluginFailure, clip};

/// Time limit of a plugin that cannot ask questions.
const LIMIT: Duration = Duration::from_secs(60);

/// Limit on the output; certificates with long chains are a tenth of it.
const MOST_BYTES: u64 = 1 << 20;

/// How much of the end of standard error is kept.
const KEPT_BYTES: usize = 4 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    kind: Option<String>,
    api_version: Option<String>,
    status: Option<PluginStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PluginStatus {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Runs the plugin to its end. A plugin that may ask questions gets the terminal and has no time limit.
///
/// Cancellation: dropping the future kills the plugin.
pub(crate) async fn run(exec: &ExecConfig) -> Result<Credential, PluginError> {
    let failed = |failure| PluginError::new(exec, failure);
    let interactive = exec.interactive_mode != Some(ExecInteractiveMode::Never);
    let mut child = command(exec, interactive)
        .spawn()
        .map_err(|e| failed(PluginFailure::not_started(e)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let running = async {
        let (answer, said) = join(whole(stdout), end(stderr)).await;
        (answer, said, child.wait().await)
    };
    let ended = if interactive {
        Ok(running.await)
    } else {
        tokio::time::timeout(LIMIT, running).await
    };
    let (answer, said, status) = ended.map_err(|_| failed(PluginFailure::TimedOut(LIMIT)))?;
    let status = status.map_err(|e| failed(PluginFailure::NotStarted(e)))?;
    if !status.success() {
        return Err(failed(PluginFailure::of_end(status, &said, &answer)));
    }
    read(exec, &answer).map_err(failed)
}

fn command(exec: &ExecConfig, interactive: bool) -> Command {
    let mut command = Command::new(exec.command.as_deref().unwrap_or_default());
    command.args(exec.args.iter().flatten());
    // A plugin is no part of the service whose manager listens there.
    command.env_remove("NOTIFY_SOCKET");
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    let mut spec = json!({"interactive": interactive});
    if exec.provide_cluster_info {
        spec["cluster"] = json!(exec.cluster);
    }
    let info = json!({"kind": "ExecCredential", "apiVersion": exec.api_version, "spec": spec});
    command.env("KUBERNETES_EXEC_INFO", info.to_string());
    for name in exec.drop_env.iter().flatten() {
        command.env_remove(name);
    }
    command.stdout(Stdio::piped()).kill_on_drop(true);
    match interactive {
        true => command.stdin(Stdio::inherit()).stderr(Stdio::inherit()),
        false => command.stdin(Stdio::null()).stderr(Stdio::piped()),
    };
    command
}

/// Reads the output, unless it is too long for a credential.
async fn whole(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // An unreadable output counts as empty, which is reported later.
        let _ = stream.take(MOST_BYTES).read_to_end(&mut bytes).await;
    }
    bytes
}

/// The last [`KEPT_BYTES`], at least.
async fn end(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else {
        return kept;
    };
    while let Ok(1..) = stream.read_buf(&mut kept).await {
        if kept.len() > 2 * KEPT_BYTES {
            kept.drain(..kept.len() - KEPT_BYTES);
        }
    }
    kept
}

fn read(exec: &ExecConfig, answer: &[u8]) -> Result<Credential, PluginFailure> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let foreign = PluginFailure::Unusable(
        "what it printed is no ExecCredential of the apiVersion that the kubeconfig names",
    );
    // Converted through JSON, in which a number is not a text.
    let answer = serde_saphyr::from_slice_with_options(answer, options).ok();
    let answer = answer.and_then(|json: serde_json::Value| serde_json::from_value(json).ok());
    let Some(answer): Option<ExecCredential> = answer else {
        return Err(foreign);
    };
    if answer.kind.as_deref() != Some("ExecCredential") || answer.api_version != exec.api_version {
        return Err(foreign);
    }
    let status = answer.status.ok_or(PluginFailure::NoCredentials)?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = given(status.token);
    let authorization = match &token {
        Some(token) => Some(credential::bearer(token).ok_or(PluginFailure::Unusable(
            "its token holds characters that no HTTP header can, a line break perhaps",
        ))?),
        None => None,
    };
    let (certificate, key) = (
        given(status.client_certificate_data),
        given(status.client_key_data),
    );
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(
            credential::identity(certificate.as_bytes(), key.as_bytes())
                .map_err(PluginFailure::Unusable)?,
        ),
        (None, None) => None,
        _ => {
            return Err(PluginFailure::Unusable(
                "it gave a certificate without its key, or a key without its certificate",
            ));
        }
    };
    let expires = match status.expiration_timestamp {
        Some(text) => Some(text.parse::<Timestamp>().map_err(|_| {
            PluginFailure::Unusable("its expirationTimestamp is no time as RFC 3339 has it")
        })?),
        None => None,
    };
    let credential = Credential {
        authorization,
        identity,
        expires: expires.map(Into::into),
    };
    match credential.is_none() {
        true => Err(PluginFailure::NoCredentials),
        false => Ok(credential),
    }
}

impl PluginFailure {
    fn not_started(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::NotStarted(error),
        }
    }

    /// The last line of standard error normally has the reason.
    fn of_end(status: ExitStatus, stderr: &[u8], stdout: &[u8]) -> Self {
        let said = String::from_utf8_lossy(stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        let answer = String::from_utf8_lossy(stdout);
        Self::Failed {
            status: status.to_string(),
            said: clip(&without_secrets(last.unwrap_or_default(), &answer)),
        }
    }
}

/// Removes words that are or look like credentials from the line: a script under `set -x` prints them.
fn without_secrets(line: &str, answer: &str) -> String {
    let secret = |word: &str| {
        let count = |kind: fn(&char) -> bool| word.chars().filter(kind).count();
        let digits = count(char::is_ascii_digit);
        let (upper, lower) = (
            count(char::is_ascii_uppercase),
            count(char::is_ascii_lowercase),
        );
        word.starts_with("eyJ")
            || (word.len() >= 8 && answer.contains(word))
            || (word.len() >= 32 && digits > 2 && upper > 2 && lower > 2)
            || (word.len() >= 32 && digits > 4 && word.chars().all(|c| c.is_ascii_hexdigit()))
    };
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '_' | '.');
    let mut shown = String::new();
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        let (this, after) = rest.split_at(end);
        shown.push_str(if secret(this) { "…" } else { this });
        let next = after.find(word).unwrap_or(after.len());
        shown.push_str(&after[..next]);
        rest = &after[next..];
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_cannot_tell_the_service_manager() {
        let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "login"});
        let exec: ExecConfig = serde_json::from_value(exec).unwrap();
        let command = command(&exec, false);
        let mut environment = command.as_std().get_envs();
        assert!(environment.any(|(name, value)| name == "NOTIFY_SOCKET" && value.is_none()));
    }

    #[test]
    fn words_like_credentials_are_left_out() {
        for (line, shown) in [
            ("please run: aws sso login --profile prod-2", None),
            (
                "open /home/jane/.config/tool/cache-2024-01-01.json: no such file",
                None,
            ),
            ("AADSTS700082: The refresh token has expired", None),
            ("+ TOKEN=eyJhbGciOiJSUzI1NiJ9.e30.c2ln", Some("+ TOKEN=…")),
            ("of-the-answer was not taken", Some("… was not taken")),
            (
                "key 0123456789abcdef0123456789abcdef is wrong",
                Some("key … is wrong"),
            ),
        ] {
            let answer = r#"{"token": "of-the-answer"}"#;
            assert_eq!(without_secrets(line, answer), shown.unwrap_or(line));
        }
    }
}
