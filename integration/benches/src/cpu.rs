//! Who used the processors meanwhile, and whether the node is through with what was asked of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use lab::{ClusterDaemon, Lab};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::subject::RunningSubject;

/// `/proc` counts in these on every Linux (`USER_HZ`).
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of processor time, by who used them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Usage(BTreeMap<String, f64>);

impl Usage {
    /// Since the machine was started.
    pub(crate) fn until_now(lab: &Lab, subject: &RunningSubject) -> anyhow::Result<Self> {
        let mut usage = BTreeMap::new();
        for (daemon, pid) in lab.status()? {
            if let (
                ClusterDaemon::ApiServer | ClusterDaemon::Kubelet | ClusterDaemon::Containerd,
                Some(pid),
            ) = (daemon, pid)
            {
                usage.insert(daemon.name().into(), of_process(pid)?);
            }
        }
        usage.insert("subject".into(), of_process(subject.pid()?)?);
        usage.insert("clients".into(), of_process(std::process::id())?);
        let known: f64 = usage.values().sum();
        // The pods, the network's share of the kernel, and whatever else the machine does.
        usage.insert("others".into(), of_machine()? - known);
        Ok(Self(usage))
    }

    pub(crate) fn since(mut self, before: &Self) -> Self {
        for (who, seconds) in &mut self.0 {
            *seconds -= before.0.get(who).copied().unwrap_or_default();
        }
        self
    }

    /// Who, and how much.
    pub(crate) fn of(&self, who: &str) -> Option<f64> {
        self.0.get(who).copied()
    }
}

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.to_owned())
}

fn of_process(pid: u32) -> anyhow::Result<f64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    let fields = fields(&stat)?;
    // utime and stime, the 14th and 15th of the whole.
    let ticks = |at: usize| anyhow::Ok(fields.get(at).context("too short")?.parse::<f64>()?);
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

/// The fields of a `/proc/PID/stat` behind the name; the first is the state.
pub(crate) fn fields(stat: &str) -> anyhow::Result<Vec<&str>> {
    // The name may have spaces in it, and ends at the last parenthesis.
    let (_, fields) = stat.rsplit_once(')').context("no process name")?;
    Ok(fields.split_whitespace().collect())
}

fn of_machine() -> anyhow::Result<f64> {
    let stat = read("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = fields.skip(1).filter_map(|f| f.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = |at: &usize| ![3, 4, 7].contains(at);
    let ticks: f64 = (0..ticks.len().min(8))
        .filter(busy)
        .map(|at| ticks[at])
        .sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// How many descriptors the container runtime holds: four for each connection that is forwarded.
pub(crate) fn node_descriptors(lab: &Lab) -> anyhow::Result<usize> {
    let daemons = lab.status()?;
    let containerd = daemons
        .iter()
        .find(|(d, _)| *d == ClusterDaemon::Containerd);
    let pid = containerd.and_then(|(_, pid)| *pid);
    let pid = pid.context("containerd does not run")?;
    let path = PathBuf::from(format!("/proc/{pid}/fd"));
    let listed = std::fs::read_dir(&path).with_context(|| path.display().to_string())?;
    Ok(listed.count())
}

/// Waits until the container runtime holds no more than it did, so that the next subject finds the same cluster.
pub(crate) async fn calm_down(lab: &Lab, descriptors: usize) -> anyhow::Result<()> {
    /// It opens some for itself.
    const SPARE: usize = 16;
    let until = Instant::now() + Duration::from_secs(20);
    while node_descriptors(lab)? > descriptors + SPARE {
        anyhow::ensure!(
            Instant::now() < until,
            "the node still holds connections of a subject that has ended"
        );
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
