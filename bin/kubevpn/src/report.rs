//! Prints failures: the error, its causes, and a hint.

use std::io::ErrorKind;
use std::process::ExitCode;

use kubevpn_daemon::Code;

use crate::exit::{Failure, exit_code};
use crate::out;

/// Prints a failure with its causes to standard error, and returns the exit code.
pub(crate) fn report(failure: &Failure) -> ExitCode {
    for line in lines(failure) {
        out::aside(line);
    }
    ExitCode::from(exit_code(failure))
}

fn lines(failure: &Failure) -> Vec<String> {
    let (message, causes) = match failure {
        Failure::Api(error) | Failure::Advised { error, .. } => {
            (error.message.clone(), error.causes.clone())
        }
        Failure::NotRun { command, source } if source.kind() == ErrorKind::NotFound => (
            format!("cannot run {command}: it is not found in PATH"),
            Vec::new(),
        ),
        Failure::NotIsolated { message, cause } => {
            (message.clone(), cause.iter().cloned().collect())
        }
        Failure::NotRun { command, source } => {
            (format!("cannot run {command}"), vec![source.to_string()])
        }
        Failure::Other(error) => {
            let causes = error.chain().skip(1).map(ToString::to_string);
            (error.to_string(), causes.collect())
        }
        Failure::Ended(_) | Failure::Interrupted | Failure::Unheard => return Vec::new(),
    };
    let mut lines = vec![format!("error: {}", set_in(&message))];
    // A layer may say no more than what it wraps, or all of it.
    let mut said = vec![message];
    for cause in causes {
        if !said.iter().any(|text| says(text, &cause)) {
            lines.push(format!("  caused by: {}", set_in(&cause)));
            said.push(cause);
        }
    }
    let advice = match failure {
        Failure::Api(error) => hint(error.code),
        Failure::Advised { advice, .. } => Some(advice.as_str()),
        Failure::NotIsolated { .. } => {
            Some("--isolated=auto, which uses the environment's way where there is no other")
        }
        _ => None,
    };
    lines.extend(advice.map(|advice| format!("  try: {}", set_in(advice))));
    lines
}

/// Whether the cause is all of the text, or its last part: a short cause may be in another word by chance.
fn says(text: &str, cause: &str) -> bool {
    let before = text.strip_suffix(cause);
    before.is_some_and(|before| before.is_empty() || before.ends_with(": "))
}

/// The flags that help, which libraries do not know.
fn hint(code: Code) -> Option<&'static str> {
    match code {
        Code::Exposed => Some(
            "--auth-file FILE asks clients for a password, --allow-unauthenticated lets everybody in",
        ),
        _ => None,
    }
}

/// Indents the lines of a message from outside, and escapes everything else for the terminal.
fn set_in(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(out::escaped).collect();
    lines.join("\n    ")
}

#[cfg(test)]
mod tests {
    use kubevpn_daemon::ApiError;
    use kubevpn_target::{ConnectError, Refusal, table::REFUSALS};

    use super::*;

    #[test]
    fn every_refusal_is_printed_as_its_sentence() {
        for row in REFUSALS {
            let failure = Failure::from(ConnectError::new(row.refusal, row.sentence));
            assert_eq!(lines(&failure), [format!("error: {}", row.sentence)]);
        }
    }

    #[test]
    fn causes_and_helpful_flags_are_printed() {
        let exposed = ApiError {
            causes: ["one", "to all", "one", "two", "all"]
                .map(String::from)
                .to_vec(),
            ..ApiError::new(Code::Exposed, "open: to all")
        };
        let said = lines(&Failure::from(exposed));
        assert_eq!(
            said[..4],
            [
                "error: open: to all",
                "  caused by: one",
                "  caused by: two",
                "  caused by: all"
            ]
        );
        assert!(said[4].contains("--auth-file"), "{said:?}");
        let advised = Failure::Advised {
            error: ApiError::new(Code::Refused(Refusal::NameNotFound), "no"),
            advice: "web.shop?".into(),
        };
        assert_eq!(lines(&advised), ["error: no", "  try: web.shop?"]);
        assert_eq!(exit_code(&advised), 50);
    }

    /// Messages of an API server, a plugin or the daemon cannot control the terminal.
    #[test]
    fn messages_from_elsewhere_cannot_drive_the_terminal() {
        let said = set_in("bad\u{1b}]0;title\u{7} \u{202e}gnp\nsecond\rline");
        assert_eq!(
            said,
            "bad\\u{1b}]0;title\\u{7} \\u{202e}gnp\n    second\\rline"
        );
    }
}
