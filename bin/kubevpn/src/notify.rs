//! What a service manager is told (`sd_notify(3)`): that the proxy serves, what it waits for, that it ends. Nothing where no
//! `NOTIFY_SOCKET` is in the environment.

use std::fmt::Display;

use crate::out;

/// The proxy serves.
pub(crate) fn ready(status: impl Display) {
    tell(Some(ServiceState::Ready), &status);
}

/// What it does, for `systemctl status`.
pub(crate) fn status(status: impl Display) {
    tell(None, &status);
}

/// The proxy has begun to end.
pub(crate) fn stopping(status: impl Display) {
    tell(Some(ServiceState::Stopping), &status);
}

/// States of a service that its manager acts on.
#[derive(Clone, Copy)]
enum ServiceState {
    Ready,
    Stopping,
}

/// A proxy serves its clients whether or not its manager hears of it.
#[cfg(target_os = "linux")]
fn tell(state: Option<ServiceState>, status: &dyn Display) {
    use sd_notify::NotifyState;

    // A line is an assignment of its own.
    let status = status.to_string();
    let status = out::escaped(&status);
    let state = state.map(|state| match state {
        ServiceState::Ready => NotifyState::Ready,
        ServiceState::Stopping => NotifyState::Stopping,
    });
    let states: Vec<_> = state
        .into_iter()
        .chain([NotifyState::Status(&status)])
        .collect();
    if let Err(error) = sd_notify::notify(&states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(not(target_os = "linux"))]
fn tell(_: Option<ServiceState>, _: &dyn Display) {}
