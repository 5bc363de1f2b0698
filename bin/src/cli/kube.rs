//! kubectl's flags for choosing a cluster.

use std::path::PathBuf;

use clap::ArgAction;
use kubevpn_client::KubeconfigArgs;

/// Which cluster, and as whom; the same words as kubectl's
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct KubeArgs {
    /// Kubeconfig file to use [default: the files of $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Cluster of the kubeconfig to use
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// User of the kubeconfig to use
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Namespace of names without one [default: the context's]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// User to impersonate
    #[arg(long = "as", value_name = "NAME")]
    impersonate: Option<String>,
    /// Group to impersonate, may be given more than once
    #[arg(long = "as-group", value_name = "NAME", action = ArgAction::Append)]
    impersonate_groups: Vec<String>,
    /// Address of the API server instead of the kubeconfig's
    #[arg(short, long, value_name = "URL")]
    server: Option<String>,
}

impl From<KubeArgs> for KubeconfigArgs {
    fn from(args: KubeArgs) -> Self {
        Self {
            kubeconfig: args.kubeconfig,
            context: args.context,
            cluster: args.cluster,
            user: args.user,
            namespace: args.namespace,
            impersonate: args.impersonate,
            impersonate_groups: args.impersonate_groups,
            server: args.server,
            ..Self::default()
        }
    }
}
