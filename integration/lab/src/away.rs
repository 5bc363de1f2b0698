//! A line that goes away and comes back: how long after that is the first connection answered?

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use crate::Lab;
use crate::command::{command, output};
use crate::machine::{Machine, seconds};

const SOCKS: &str = "127.0.0.1:1080";
/// Between two connections of the load.
const EVERY: Duration = Duration::from_millis(200);
/// Nothing takes longer, or it does not come back.
const BACK: Duration = Duration::from_secs(60);

/// In which way the line is gone.
#[derive(Clone, Copy, Debug)]
pub enum Away {
    /// The link is down: programs see it.
    LinkDown,
    /// Packets are lost and nothing is said.
    BlackHole,
    /// The link is down, and the address is another afterwards.
    OtherAddress,
    /// The machine sleeps: programs stand still while the clock goes on.
    Sleeps,
}

/// One measurement.
#[derive(Debug)]
pub struct Recovery {
    /// In which way.
    pub away: Away,
    /// For how long.
    pub lasted: Duration,
    /// In the background by `connect`, or `proxy-out` in the foreground.
    pub managed: bool,
    /// From "the line is back" to the first answer.
    pub back: Duration,
}

impl Away {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::LinkDown,
        Self::BlackHole,
        Self::OtherAddress,
        Self::Sleeps,
    ];

    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Self::LinkDown => "link down",
            Self::BlackHole => "packets lost",
            Self::OtherAddress => "link down, then another address",
            Self::Sleeps => "asleep (SIGSTOP)",
        }
    }
}

impl Lab {
    /// Takes the line of a machine away for each of these times, in every way, in the foreground and in the background.
    ///
    /// # Errors
    /// No cluster, or a proxy that never answers again.
    pub async fn away(
        &self,
        kubevpn: &Path,
        times: &[Duration],
        mut report: impl FnMut(&Recovery),
    ) -> Result<Vec<Recovery>> {
        self.api_ready().await?;
        let mut all = Vec::new();
        for managed in [false, true] {
            for away in Away::ALL {
                for lasts in times {
                    let what = || format!("{} for {lasts:?}", away.name());
                    let back = self.take_away(kubevpn, away, *lasts, managed);
                    let recovery = Recovery {
                        away,
                        lasted: *lasts,
                        managed,
                        back: back.await.with_context(what)?,
                    };
                    report(&recovery);
                    all.push(recovery);
                }
            }
        }
        Ok(all)
    }

    async fn take_away(
        &self,
        kubevpn: &Path,
        away: Away,
        lasts: Duration,
        managed: bool,
    ) -> Result<Duration> {
        let mut machine = self.machine().await?;
        let program = kubevpn.display().to_string();
        let (pid, _child): (u32, Option<Child>) = if managed {
            output(&mut machine.command(&[&program, "connect", "--socks"])?).await?;
            let about = [program.as_str(), "version", "-o", "json"];
            let about = output(&mut machine.command(&about)?).await?;
            let about: serde_json::Value = serde_json::from_str(&about)?;
            let pid = about["daemon"]["pid"].as_u64().context("no daemon")?;
            (u32::try_from(pid)?, None)
        } else {
            let proxy = machine.proxy(kubevpn, &["--listen-socks", SOCKS]).await?;
            (proxy.child.id().context("it has ended")?, Some(proxy.child))
        };
        for target in ["productpage.default:9080", "reviews.default:80"] {
            request(&machine, target).await.context("before")?;
        }
        let gone = self.gone(&mut machine, away, lasts, pid).await;
        let back = match gone {
            Ok(back) => answered(&machine, back).await,
            Err(error) => Err(error),
        };
        if managed {
            output(&mut machine.command(&[&program, "quit"])?).await?;
        }
        back
    }

    /// Takes it away and brings it back, under load; since when it is back.
    async fn gone(
        &self,
        machine: &mut Machine,
        away: Away,
        lasts: Duration,
        pid: u32,
    ) -> Result<Instant> {
        let pid = pid.to_string();
        match away {
            Away::LinkDown | Away::OtherAddress => machine.set_link(false).await?,
            Away::BlackHole => machine.set_hole(true).await?,
            Away::Sleeps => {
                output(command("kill")?.args(["-STOP", &pid])).await?;
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < lasts {
            if matches!(away, Away::Sleeps) {
                sleep(lasts).await; // nobody uses a machine that sleeps
                break;
            }
            let _ = request_within(machine, "productpage.default:9080", "1").await;
            sleep(EVERY).await;
        }
        match away {
            Away::LinkDown => machine.set_link(true).await?,
            Away::OtherAddress => {
                machine.set_link(true).await?;
                machine.set_address(3).await?;
            }
            Away::BlackHole => machine.set_hole(false).await?,
            Away::Sleeps => {
                output(command("kill")?.args(["-CONT", &pid])).await?;
            }
        }
        Ok(Instant::now())
    }
}

/// Until a new connection is answered.
async fn answered(machine: &Machine, since: Instant) -> Result<Duration> {
    loop {
        // One that waits does not keep the next from being tried, as with people who reload.
        if request_within(machine, "productpage.default:9080", "20")
            .await
            .is_ok()
        {
            return Ok(Duration::from_secs_f64(seconds(since)));
        }
        ensure!(
            since.elapsed() < BACK,
            "not answered {BACK:?} after the line was back"
        );
        sleep(EVERY).await;
    }
}

async fn request(machine: &Machine, target: &str) -> Result<()> {
    request_within(machine, target, "40").await
}

async fn request_within(machine: &Machine, target: &str, limit: &str) -> Result<()> {
    let (proxy, url) = (format!("socks5h://{SOCKS}"), format!("http://{target}/"));
    let args = [
        "--max-time",
        limit,
        "-o",
        "/dev/null",
        "--proxy",
        &proxy,
        &url,
    ];
    machine.curl(&args).await.map(drop)
}

/// The rows of a table in Markdown.
pub fn table(recoveries: &[Recovery]) -> String {
    let mut table =
        String::from("| the line | for | by | first answer after it is back |\n|-|-|-|-|\n");
    for r in recoveries {
        let by = if r.managed {
            "`connect`"
        } else {
            "`proxy-out`"
        };
        table += &format!(
            "| {} | {} s | {by} | {:.2} s |\n",
            r.away.name(),
            r.lasted.as_secs(),
            r.back.as_secs_f64()
        );
    }
    table
}
