//! kubectl's flags for choosing a cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction;
use kubevpn_client::KubeconfigArgs;

/// Environment variable with the token of `--token`.
pub(super) const TOKEN: &str = "KUBEVPN_TOKEN";

/// The cluster and the user, as in kubectl
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
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
    /// Look up names without a namespace in namespace NAME [default: the context's]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// User to impersonate
    #[arg(long = "as", value_name = "NAME")]
    impersonate: Option<String>,
    /// Group to impersonate, may be given more than once
    #[arg(long = "as-group", value_name = "NAME", action = ArgAction::Append)]
    impersonate_groups: Vec<String>,
    /// Reach the API server at URL instead of the address in the kubeconfig
    #[arg(short, long, value_name = "URL")]
    server: Option<String>,
    /// Bearer token for the API server. Every user of this machine can read it on the command line: prefer the variable,
    /// which is not passed on to commands that are run
    #[arg(long, value_name = "TOKEN", env = TOKEN, hide_env_values = true)]
    token: Option<String>,
    /// CA certificate file used to verify the API server
    #[arg(long, value_name = "FILE")]
    certificate_authority: Option<PathBuf>,
    /// Do not verify the API server's certificate. INSECURE: traffic can be intercepted
    #[arg(long)]
    insecure_skip_tls_verify: bool,
    /// Name to expect in the API server's certificate
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
    /// Time limit of a call to the API server, e.g. 10s [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    request_timeout: Option<Duration>,
}

impl KubeArgs {
    /// The namespace that the flags name.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }
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
            token: args.token.map(Into::into),
            certificate_authority: args.certificate_authority,
            insecure_skip_tls_verify: args.insecure_skip_tls_verify,
            tls_server_name: args.tls_server_name,
            request_timeout: args.request_timeout,
        }
    }
}
