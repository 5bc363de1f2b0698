//! Selects a connection by its ID or the beginning of it, its context or namespace, or without a name if there is only one.

use kubevpn_daemon::api::StatusReport;
use kubevpn_daemon::{ApiError, Code, DaemonClient, identity};

use super::status;
use crate::exit::Failure;

/// The ID of the selected connection. A complete ID is passed to the daemon unchecked.
pub(super) async fn connection(
    daemon: &DaemonClient,
    given: Option<&str>,
) -> Result<String, Failure> {
    if let Some(id) = given.filter(|id| identity::is_id(id)) {
        return Ok(id.to_owned());
    }
    let status = status::ask(daemon).await?;
    Ok(meant(&status, given)?)
}

fn meant(status: &StatusReport, given: Option<&str>) -> Result<String, ApiError> {
    let open = status.list.iter().map(|connection| {
        let named = format!(
            "{} (context {}, namespace {})",
            connection.id, connection.context, connection.namespace
        );
        (
            &connection.id,
            named,
            [&connection.context, &connection.namespace],
        )
    });
    let nameless = String::new();
    let problems = status.problems.iter();
    let problems =
        problems.map(|problem| (&problem.id, problem.id.clone(), [&nameless, &nameless]));
    let all: Vec<_> = open.chain(problems).collect();
    let fits: Vec<_> = all
        .iter()
        .filter(|(id, _, names)| match given {
            None => true,
            Some(text) => {
                !text.is_empty() && (id.starts_with(text) || names.iter().any(|name| *name == text))
            }
        })
        .collect();
    match (&fits[..], given) {
        ([(id, ..)], _) => Ok((*id).clone()),
        ([], None) => Err(ApiError::new(
            Code::NoSuchConnection,
            "no connection is open: kubevpn connect opens one",
        )),
        ([], Some(text)) if all.is_empty() => Err(ApiError::new(
            Code::NoSuchConnection,
            format!("there is no connection {text:?}: none is open"),
        )),
        ([], Some(text)) => Err(ApiError::no_such_connection(text)),
        (several, given) => {
            let names: Vec<_> = several.iter().map(|(_, named, _)| named.as_str()).collect();
            let said = given.map_or_else(
                || "there are several connections".to_owned(),
                |text| format!("{text:?} may be several connections"),
            );
            Err(ApiError::new(
                Code::InvalidValue,
                format!("{said}: {}; name one by its ID", names.join(", ")),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn status(ids: &[(&str, &str)]) -> StatusReport {
        let list = ids.iter().map(|(id, namespace)| {
            let mut connection = sample::connection(id);
            connection.namespace = (*namespace).to_owned();
            connection
        });
        StatusReport {
            list: list.collect(),
            ..StatusReport::default()
        }
    }

    #[test]
    fn words_for_a_connection() {
        let one = status(&[("03dc50feb8c3", "shop")]);
        let two = status(&[("03dc50feb8c3", "shop"), ("03ff50feb8c3", "team-a")]);
        for (status, given, wanted) in [
            (&one, None, Ok("03dc50feb8c3")),
            (&one, Some("03"), Ok("03dc50feb8c3")),
            (&one, Some("lab"), Ok("03dc50feb8c3")),
            (&two, Some("03d"), Ok("03dc50feb8c3")),
            (&two, Some("team-a"), Ok("03ff50feb8c3")),
            (&two, Some("03"), Err(Code::InvalidValue)),
            (&two, Some("lab"), Err(Code::InvalidValue)),
            (&two, None, Err(Code::InvalidValue)),
            (&one, Some("x"), Err(Code::NoSuchConnection)),
            (&one, Some(""), Err(Code::NoSuchConnection)),
            (&status(&[]), None, Err(Code::NoSuchConnection)),
        ] {
            let found = meant(status, given).map_err(|error| error.code);
            assert_eq!(found, wanted.map(str::to_owned), "{given:?}");
        }
    }
}
