//! `kubevpn shell`.

use super::child::ended;
use super::env_from::EnvFromArgs;
use super::isolated::InsideArgs;
use super::kube::KubeArgs;
use super::policy::PolicyArgs;
use crate::exit::Failure;

/// Start a shell in the cluster's network (Linux)
///
/// The same as `kubevpn run --isolated -- $SHELL`: every TCP connection and every DNS lookup of any program in it leads into
/// the cluster. In bash on Debian and Ubuntu the prompt shows the namespace (by $debian_chroot).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # a shell in the namespace shop
  kubevpn shell -n shop

  # one that reaches hosts outside the cluster too
  kubevpn shell --outside direct")]
pub(crate) struct ShellCommand {
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    inside: InsideArgs,
    #[command(flatten)]
    environment: EnvFromArgs,
}

impl ShellCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let policy = self.policy.policy()?;
        let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
        let shell = shell.unwrap_or_else(|| "/bin/sh".into());
        let environment = &self.environment;
        let status = self
            .inside
            .run(&[shell], self.kube, &policy, environment, true)
            .await?;
        ended(status)
    }
}
