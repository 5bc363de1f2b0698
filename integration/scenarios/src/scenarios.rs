//! The scenarios, a file per subject.

mod chaos;
mod dns;
mod env_from;
mod explain;
mod failover;
mod forward;
mod grpc;
mod http;
#[cfg(target_os = "linux")]
mod isolated;
mod life;
mod load;
mod managed;
mod names;
mod ready;
mod refusals;
mod rights;
mod run;
mod small;
mod steady;
mod streams;
mod targets;

use crate::Scenario;

/// `scenario!("file", f)` is a [`Scenario`] named after its file and function; `scenario!("file", f, One)` is run
/// over one transport only, and `scenario!("file", f, One, PYTHON)` where a command succeeds.
macro_rules! scenario {
    ($subject:literal, $f:ident) => {
        scenario!($subject, $f, Every)
    };
    ($subject:literal, $f:ident, $transports:ident) => {
        scenario!($subject, $f, $transports, &[])
    };
    ($subject:literal, $f:ident, $transports:ident, $needs:expr) => {
        crate::Scenario {
            name: concat!($subject, "::", stringify!($f)),
            transports: crate::Transports::$transports,
            needs: $needs,
            run: |context| Box::pin($f(context)),
        }
    };
}
use scenario;

pub(crate) fn all() -> Vec<Scenario> {
    [
        names::list(),
        refusals::list(),
        streams::list(),
        life::list(),
        managed::list(),
        failover::list(),
        forward::list(),
        chaos::list(),
        dns::list(),
        run::list(),
        env_from::list(),
        #[cfg(target_os = "linux")]
        isolated::list(),
        small::list(),
        http::list(),
        grpc::list(),
        load::list(),
        targets::list(),
        rights::list(),
        steady::list(),
        ready::list(),
        explain::list(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
