//! A proxy's processes: started in a group of their own, measured and ended together.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use crate::cpu::{self, TICKS_PER_SECOND};

/// How long a proxy may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(3);

/// The first process and all it forked.
pub(super) struct Group {
    child: Child,
    id: i32,
}

impl Group {
    pub(super) fn start(mut command: Command) -> anyhow::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.as_std().get_program()))?;
        let id = child.id().context("it has just been started")?;
        Ok(Self {
            child,
            id: i32::try_from(id)?,
        })
    }

    /// What it ended with, if it has.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Asks all of them to end, and kills what is left.
    pub(super) async fn end(&mut self) -> anyhow::Result<()> {
        let group = Pid::from_raw(self.id).context("a process group")?;
        // Fails when there is nobody left to tell.
        let _ = kill_process_group(group, Signal::TERM);
        let _ = tokio::time::timeout(GRACE, self.child.wait()).await;
        let _ = kill_process_group(group, Signal::KILL);
        self.child.wait().await?;
        Ok(())
    }

    /// Processor time since their start, with that of children that have ended, in seconds.
    pub(super) fn cpu(&self) -> anyhow::Result<f64> {
        let mut ticks = 0;
        for (_, stat) in self.members()? {
            let times = stat.get(11..15).context("a short /proc/PID/stat")?;
            for time in times {
                ticks += time.parse::<u64>()?;
            }
        }
        Ok(ticks as f64 / TICKS_PER_SECOND)
    }

    /// Memory of all of them, shared pages divided among who shares them, in bytes.
    pub(super) fn memory(&self) -> anyhow::Result<u64> {
        let mut kib = 0;
        for (pid, _) in self.members()? {
            let Ok(smaps) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
                continue; // it has ended meanwhile
            };
            let pss = smaps.lines().find_map(|line| line.strip_prefix("Pss:"));
            let pss = pss.context("no Pss")?.trim().trim_end_matches(" kB");
            kib += pss.parse::<u64>()?;
        }
        Ok(kib * 1024)
    }

    /// Pid and fields, as `cpu::fields` has them.
    fn members(&self) -> anyhow::Result<Vec<(String, Vec<String>)>> {
        let group = self.id.to_string();
        let mut members = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let pid = entry?.file_name().to_string_lossy().into_owned();
            if !pid.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
                continue; // it has ended meanwhile
            };
            let fields = cpu::fields(&stat)?;
            if fields.get(2) == Some(&&*group) {
                members.push((pid, fields.into_iter().map(str::to_owned).collect()));
            }
        }
        Ok(members)
    }
}
