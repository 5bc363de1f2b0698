//! Says what a host and port mean in the cluster of the kubeconfig, and how that was found:
//! `cargo run -p kubevpn-cluster --example lookup -- web.shop:80`

use std::error::Error;
use std::process::ExitCode;

use kubevpn_client::{Env, KubeconfigArgs, Options, build, load};
use kubevpn_cluster::{Answer, Cluster, LookupError, Settings};
use kubevpn_target::{Origin, Target};
use std::io::Write;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let loaded = load(&KubeconfigArgs::default(), &Env::of_process())?;
    let settings = Settings {
        namespace: loaded.namespace,
        ..Settings::default()
    };
    let client = build(loaded.config, &Options::new("kubevpn-cluster-example"))?;
    let cluster = Cluster::new(client, settings);
    let mut out = std::io::stdout();
    let mut code = ExitCode::SUCCESS;
    for target in std::env::args().skip(1) {
        let target = Target::parse(&target, Origin::default())?;
        let (steps, answer) = cluster.explain(&target.host, target.port).await;
        writeln!(out, "{target}")?;
        for step in steps {
            writeln!(out, "  {:>7.1?}  {step}", step.at)?;
        }
        match say(answer) {
            Ok(answer) => writeln!(out, "  -> {answer}")?,
            Err(error) => {
                writeln!(out, "  -> {}: {error}", error.refusal())?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn say(answer: Result<Answer, LookupError>) -> Result<String, LookupError> {
    Ok(match answer? {
        Answer::Pods(candidates) => {
            let usable = candidates.usable()?;
            let usable = usable.iter().map(|e| format!("{}:{}", e.pod, e.port));
            usable.collect::<Vec<_>>().join(", ")
        }
        Answer::ApiServer => "the API server".into(),
        Answer::Outside(outside) => format!("{}, outside the cluster", outside.host),
    })
}
