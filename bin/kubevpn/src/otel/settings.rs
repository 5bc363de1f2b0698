//! Settings of traces, from the environment.

use std::time::Duration;

use crate::exit::Failure;

/// Upper bound on an export, all its requests included. `OTEL_EXPORTER_OTLP_TIMEOUT` may lower it.
const REQUEST: Duration = Duration::from_secs(10);

/// Whether an endpoint is set, and no variable disables traces.
pub(super) fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    let of = |name: &str| variable(name).unwrap_or_default();
    let endpoints = [
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ];
    endpoints.iter().any(|name| !of(name).is_empty())
        && !of("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true")
        && of("OTEL_TRACES_EXPORTER") != "none"
}

/// Settings of requests to the collector, from the environment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CollectorSettings {
    /// Upper bound on an export.
    pub(super) limit: Duration,
    /// Name of the variable that has the endpoint.
    pub(super) endpoint: &'static str,
}

impl CollectorSettings {
    /// An error names the variable, and not its value, which may contain a credential.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let first = |names: [&'static str; 2]| {
            let set = |name| {
                let value = variable(name).filter(|value| !value.is_empty())?;
                Some((name, value))
            };
            names.into_iter().find_map(set)
        };
        let exporter = variable("OTEL_TRACES_EXPORTER").unwrap_or_default();
        if !["", "otlp", "none"].contains(&exporter.as_str()) {
            return Err(Failure::value(
                "traces cannot be exported: OTEL_TRACES_EXPORTER may be otlp or none; kubevpn has no other exporter",
            ));
        }
        let protocol = first([
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ]);
        if let Some((name, _)) = protocol.filter(|(_, value)| value != "http/protobuf") {
            return Err(Failure::value(format!(
                "traces cannot be exported: {name} may only be http/protobuf, which most collectors accept on port 4318"
            )));
        }
        let compression = first([
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            "OTEL_EXPORTER_OTLP_COMPRESSION",
        ]);
        let known = ["none", "gzip"];
        if let Some((name, _)) = compression.filter(|(_, value)| !known.contains(&&**value)) {
            return Err(Failure::value(format!(
                "traces cannot be exported: {name} may be gzip or none"
            )));
        }
        let limit = first([
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
        ]);
        // The specification's 0 is no limit, so that ours applies.
        let limit = limit
            .and_then(|(_, ms)| ms.parse::<u64>().ok())
            .filter(|ms| *ms > 0);
        let endpoint = first([
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ]);
        Ok(Self {
            limit: limit.map_or(REQUEST, Duration::from_millis).min(REQUEST),
            endpoint: endpoint.map_or("OTEL_EXPORTER_OTLP_ENDPOINT", |(name, _)| name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_exported_without_an_endpoint() {
        let with = |set: &[(&str, &str)]| {
            is_wanted(|name| {
                let mut found = set.iter().filter(|(set, _)| *set == name);
                found.next().map(|(_, value)| (*value).to_owned())
            })
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector/x");
        assert!(with(&[endpoint]) && with(&[traces]));
        assert!(!with(&[]));
        assert!(!with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(!with(&[endpoint, ("OTEL_SDK_DISABLED", "True")]));
        assert!(!with(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]));
        assert!(with(&[endpoint, ("OTEL_TRACES_EXPORTER", "otlp")]));
    }

    #[test]
    fn settings_that_are_not_possible_are_errors_without_values() {
        let with = |set: &[(&str, &str)]| {
            CollectorSettings::of(|name| {
                let mut found = set.iter().filter(|(set, _)| *set == name);
                found.next().map(|(_, value)| (*value).to_owned())
            })
        };
        for (name, value) in [
            ("OTEL_TRACES_EXPORTER", "q7console"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "q7zstd"),
        ] {
            let failure = with(&[(name, value)]).unwrap_err();
            let said = failure.message();
            assert!(said.contains(name) && !said.contains(value), "{said}");
        }
        let limit = |set: &[(&str, &str)]| with(set).unwrap().limit;
        let (all, traces) = (
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        );
        assert_eq!(limit(&[]), REQUEST);
        assert_eq!(limit(&[(all, "200")]), Duration::from_millis(200));
        assert_eq!(
            limit(&[(all, "200"), (traces, "300")]),
            Duration::from_millis(300)
        );
        for none in ["0", "60000", "soon"] {
            assert_eq!(limit(&[(all, none)]), REQUEST, "{none}");
        }
        assert!(with(&[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]).is_ok());
    }
}
