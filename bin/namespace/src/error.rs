//! Errors of making a namespace, and what to do about them.

use std::fmt;
use std::io;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The steps, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetupStep {
    /// Starting the helper, and talking to it.
    Helper,
    /// Leaving the system's namespaces.
    Namespaces,
    /// Giving the new ones to a user.
    Users,
    /// Mounting other files over the system's.
    Files,
    /// The interface, addresses and routes.
    Network,
    /// The rules of the network.
    Rules,
    /// The sockets inside.
    Sockets,
}

/// A namespace could not be made: the step, the reason, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}", Sentence(.step, .on, .source))]
pub struct EnterError {
    /// The step that failed.
    pub step: SetupStep,
    /// The file on which the step failed, or empty.
    pub on: String,
    /// The system's error.
    pub source: io::Error,
}

impl EnterError {
    pub(crate) fn new(step: SetupStep, source: impl Into<io::Error>) -> Self {
        Self::on(step, String::new(), source)
    }

    pub(crate) fn on(step: SetupStep, on: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            step,
            on: on.into(),
            source: source.into(),
        }
    }
}

struct Sentence<'e>(&'e SetupStep, &'e str, &'e io::Error);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(step, on, error) = self;
        let errno = Errno::from_io_error(error);
        let is_forbidden = matches!(errno, Some(Errno::PERM | Errno::ACCESS));
        f.write_str("an isolated network cannot be made here: ")?;
        if is_forbidden && let Some(why) = Forbidder::of_this_system() {
            return f.write_str(why.sentence());
        }
        match (step, errno) {
            (SetupStep::Namespaces | SetupStep::Users, _) if is_forbidden => f.write_str(
                "something forbids user namespaces, as the seccomp profile of a container does: give the container a \
                 profile that allows unshare(2), e.g. seccomp=unconfined",
            ),
            (SetupStep::Namespaces, Some(Errno::NOSPC | Errno::USERS)) => f.write_str(
                "there are as many user or network namespaces as this system allows: raise user.max_user_namespaces \
                 and user.max_net_namespaces with sysctl(8)",
            ),
            (SetupStep::Namespaces, Some(Errno::INVAL | Errno::NOSYS)) => f.write_str(
                "the kernel has no user or network namespaces, or the process has threads already: use a kernel with \
                 CONFIG_USER_NS and CONFIG_NET_NS",
            ),
            (SetupStep::Files, Some(Errno::NOENT)) => {
                write!(f, "{on} is not there to be replaced: create it, empty will do")
            }
            (SetupStep::Files, _) => write!(f, "another file cannot be shown as {on}"),
            (SetupStep::Rules, _) => f.write_str(
                "nf_tables does not take the rules: load its modules once, as root: modprobe -a nf_tables \
                 nft_chain_nat nft_redir nft_ct",
            ),
            (SetupStep::Network, _) => f.write_str("its loopback interface cannot be set up"),
            (SetupStep::Sockets, _) => f.write_str("its sockets cannot be opened"),
            (SetupStep::Helper, _) => f.write_str("the process that makes it cannot be run"),
            (SetupStep::Namespaces, _) => f.write_str("its namespaces cannot be made"),
            (SetupStep::Users, _) => f.write_str("its namespaces cannot be given to a user"),
        }
    }
}

/// A system setting that forbids user namespaces for ordinary users.
enum Forbidder {
    AppArmor,
    Debian,
    Limit,
}

impl Forbidder {
    fn of_this_system() -> Option<Self> {
        let is = |path: &str, value: &str| {
            let read = std::fs::read_to_string(path);
            read.is_ok_and(|text| text.trim() == value)
        };
        let kernel = "/proc/sys/kernel";
        if is(&format!("{kernel}/unprivileged_userns_clone"), "0") {
            return Some(Self::Debian);
        }
        if is(
            &format!("{kernel}/apparmor_restrict_unprivileged_userns"),
            "1",
        ) {
            return Some(Self::AppArmor);
        }
        is("/proc/sys/user/max_user_namespaces", "0").then_some(Self::Limit)
    }

    fn sentence(&self) -> &'static str {
        match self {
            Self::AppArmor => {
                "AppArmor lets no program make user namespaces without a profile: install the one of kubevpn's packages, \
                 or set kernel.apparmor_restrict_unprivileged_userns=0 with sysctl(8)"
            }
            Self::Debian => {
                "the system keeps user namespaces from ordinary users: set kernel.unprivileged_userns_clone=1 with \
                 sysctl(8)"
            }
            Self::Limit => {
                "the system allows no user namespaces: set user.max_user_namespaces to 10000 or so with sysctl(8)"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_one_advice() {
        let said = |step, on: &str, errno: Errno| EnterError::on(step, on, errno).to_string();
        for (error, word) in [
            (
                said(SetupStep::Namespaces, "", Errno::NOSPC),
                "max_user_namespaces",
            ),
            (
                said(SetupStep::Namespaces, "", Errno::INVAL),
                "CONFIG_USER_NS",
            ),
            (
                said(SetupStep::Files, "/etc/resolv.conf", Errno::NOENT),
                "create it",
            ),
            (said(SetupStep::Rules, "", Errno::NOENT), "modprobe"),
        ] {
            assert!(error.starts_with("an isolated network cannot be made here: "));
            assert!(error.contains(word), "{error}");
        }
    }
}
