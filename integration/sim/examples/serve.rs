//! Runs a simulation with the sample workload until Ctrl-C, to be looked at with kubectl:
//! `cargo run -p kubevpn-sim --example serve -- DIR` writes `DIR/kubeconfig`.

use std::path::PathBuf;

use kubevpn_sim::Sim;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let sim = Sim::builder().sample().start().await?;
    let path = sim.write_kubeconfig(&dir)?;
    #[expect(clippy::print_stdout, reason = "this is what it is for")]
    {
        println!("export KUBECONFIG={}", path.display());
    }
    tokio::signal::ctrl_c().await?;
    sim.shutdown().await;
    Ok(())
}
