//! A line that goes away and comes back: how long after that is the first connection answered?

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use crate::Lab;
use crate::command::{command, output};
use crate::machine::LabMachine;
use crate::section::table_cell;
use crate::settings::MACHINES;
use crate::vpn::WireGuard;

const SOCKS: &str = "127.0.0.1:1080";
/// Between two connections of the load.
const EVERY: Duration = Duration::from_millis(200);
/// Between the starts of two rows, which go on side by side: no two lines are back in the same moment.
const APART: Duration = Duration::from_secs(3);
/// An answer that comes later than this is a failure.
const SOON: Duration = Duration::from_secs(2);
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
    /// A VPN ends, its link with it, and comes back with another address.
    OtherTunnel,
    /// The machine sleeps: programs stand still while the clock goes on, and the link is down.
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
    /// From "the line is back" to the first answer; or why none was measured.
    pub back: Result<Duration, String>,
    /// Connections that failed meanwhile: when each began, and what curl said.
    pub failed: Vec<(Duration, String)>,
}

impl Away {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::LinkDown,
        Self::BlackHole,
        Self::OtherAddress,
        Self::OtherTunnel,
        Self::Sleeps,
    ];

    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Self::LinkDown => "link down",
            Self::BlackHole => "packets lost",
            Self::OtherAddress => "link down, then another address",
            Self::OtherTunnel => "VPN gone, then another address (WireGuard)",
            Self::Sleeps => "asleep (SIGSTOP, link down)",
        }
    }
}

impl Recovery {
    /// The program that was tried.
    pub fn by(&self) -> &'static str {
        match self.managed {
            true => "connect",
            false => "proxy-out",
        }
    }

    /// What is wrong with it, if anything: it took more than 2 s.
    pub fn contradiction(&self) -> Option<String> {
        let mut text = match &self.back {
            Ok(back) if *back <= SOON => return None,
            Ok(_) => format!("later than {SOON:?}"),
            Err(error) => error.clone(),
        };
        if self.failed.is_empty() {
            text += "; the first connection waited that long";
        }
        for (began, said) in &self.failed {
            let _ = write!(text, "; after {:.2} s: {said}", began.as_secs_f64());
        }
        Some(text)
    }
}

impl Lab {
    /// Takes the line of a machine away for each of these times, in every way whose name begins with `only`, in the
    /// foreground and in the background; all of it side by side, on a machine each.
    ///
    /// # Errors
    /// No cluster; more rows than there can be machines.
    pub async fn away(
        &self,
        kubevpn: &Path,
        only: &str,
        times: &[Duration],
        mut report: impl FnMut(&Recovery),
    ) -> Result<Vec<Recovery>> {
        self.api_ready().await?;
        let mut rows = Vec::new();
        for managed in [false, true] {
            for away in Away::ALL {
                let lasting = times.iter().map(|lasts| (managed, away, *lasts));
                rows.extend(lasting.filter(|_| away.name().starts_with(only)));
            }
        }
        ensure!(
            rows.len() <= usize::from(MACHINES),
            "{} rows, and no more than {MACHINES} machines at a time",
            rows.len()
        );
        let mut running = FuturesUnordered::new();
        // Those that last longest begin first.
        let mut begin: Vec<usize> = (0..rows.len()).collect();
        begin.sort_by_key(|row| std::cmp::Reverse(rows[*row].2));
        for (n, row) in begin.into_iter().enumerate() {
            let (managed, away, lasted) = rows[row];
            let number = u8::try_from(n)?;
            running.push(async move {
                sleep(APART * u32::from(number)).await;
                let mut failed = Vec::new();
                let taken = self.take_away(kubevpn, number, away, lasted, managed, &mut failed);
                let back = taken.await.map_err(|error| format!("{error:#}"));
                let recovery = Recovery {
                    away,
                    lasted,
                    managed,
                    back,
                    failed,
                };
                (row, recovery)
            });
        }
        let mut all = Vec::new();
        while let Some((row, recovery)) = running.next().await {
            report(&recovery);
            all.push((row, recovery));
        }
        all.sort_by_key(|(row, _)| *row);
        Ok(all.into_iter().map(|(_, recovery)| recovery).collect())
    }

    async fn take_away(
        &self,
        kubevpn: &Path,
        number: u8,
        away: Away,
        lasts: Duration,
        managed: bool,
        failed: &mut Vec<(Duration, String)>,
    ) -> Result<Duration> {
        let mut place = match away {
            Away::OtherTunnel => AwayMachine::Behind(Box::new(self.wireguard(number).await?)),
            _ => AwayMachine::OnLink(Box::new(self.machine(number).await?)),
        };
        let program = kubevpn.display().to_string();
        let machine = place.machine();
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
            request(machine, target, "40").await.context("before")?;
        }
        let pid = pid.to_string();
        place.go(away, &pid).await?;
        // Nobody uses a machine that sleeps.
        let used = !matches!(away, Away::Sleeps);
        let begun = Instant::now();
        while let Some(left) = lasts.checked_sub(begun.elapsed()) {
            if used {
                let _ = request(place.machine(), "productpage.default:9080", "1").await;
            }
            sleep(if used { EVERY.min(left) } else { left }).await;
        }
        place.come_back(self, away, &pid).await?;
        let back = answered(place.machine(), Instant::now(), failed).await;
        if managed {
            output(&mut place.machine().command(&[&program, "quit"])?).await?;
        }
        back
    }
}

/// A machine, by the way to the API server that it has.
enum AwayMachine {
    OnLink(Box<LabMachine>),
    Behind(Box<WireGuard>),
}

impl AwayMachine {
    fn machine(&self) -> &LabMachine {
        match self {
            Self::OnLink(machine) => machine,
            Self::Behind(wireguard) => &wireguard.machine,
        }
    }

    /// Takes the line away; `pid` is the program's.
    async fn go(&mut self, away: Away, pid: &str) -> Result<()> {
        match (away, self) {
            (Away::LinkDown | Away::OtherAddress, Self::OnLink(machine)) => {
                machine.set_link(false).await
            }
            (Away::BlackHole, Self::OnLink(machine)) => machine.set_hole(true).await,
            (Away::Sleeps, Self::OnLink(machine)) => {
                output(command("kill")?.args(["-STOP", pid])).await?;
                machine.set_link(false).await
            }
            (Away::OtherTunnel, Self::Behind(wireguard)) => wireguard.disconnect().await,
            _ => bail!("a machine of the other kind"),
        }
    }

    /// Brings it back.
    async fn come_back(&mut self, lab: &Lab, away: Away, pid: &str) -> Result<()> {
        match (away, self) {
            (Away::LinkDown, Self::OnLink(machine)) => machine.set_link(true).await,
            (Away::OtherAddress, Self::OnLink(machine)) => {
                let other = lab.settings.machine_net(machine.number(), 3);
                machine.set_link(true).await?;
                machine.set_address(&other).await
            }
            (Away::BlackHole, Self::OnLink(machine)) => machine.set_hole(false).await,
            (Away::Sleeps, Self::OnLink(machine)) => {
                machine.set_link(true).await?;
                output(command("kill")?.args(["-CONT", pid]))
                    .await
                    .map(drop)
            }
            (Away::OtherTunnel, Self::Behind(wireguard)) => wireguard.connect(lab, 3).await,
            _ => bail!("a machine of the other kind"),
        }
    }
}

/// Until a new connection is answered; each begins when the one before it has failed, or has waited for 20 s.
async fn answered(
    machine: &LabMachine,
    since: Instant,
    failed: &mut Vec<(Duration, String)>,
) -> Result<Duration> {
    loop {
        let began = since.elapsed();
        match request(machine, "productpage.default:9080", "20").await {
            Ok(()) => return Ok(since.elapsed()),
            Err(error) => failed.push((began, error.root_cause().to_string())),
        }
        ensure!(
            since.elapsed() < BACK,
            "not answered {BACK:?} after the line was back"
        );
        sleep(EVERY).await;
    }
}

async fn request(machine: &LabMachine, target: &str, limit: &str) -> Result<()> {
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
        let back = match (&r.back, r.contradiction()) {
            (Ok(back), None) => format!("{:.2} s", back.as_secs_f64()),
            (Ok(back), Some(wrong)) => format!("**{:.2} s**, {wrong}", back.as_secs_f64()),
            (Err(_), wrong) => format!("**{}**", wrong.unwrap_or_default()),
        };
        let _ = writeln!(
            table,
            "| {} | {} s | `{}` | {} |",
            r.away.name(),
            r.lasted.as_secs(),
            r.by(),
            table_cell(&back)
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_is_a_contradiction_with_its_reason() {
        let recovery = |back, failed| Recovery {
            away: Away::LinkDown,
            lasted: Duration::from_secs(5),
            managed: false,
            back,
            failed,
        };
        assert_eq!(recovery(Ok(SOON), Vec::new()).contradiction(), None);
        let late = Duration::from_millis(2500);
        let failed = vec![(Duration::ZERO, "curl: (97) no".to_owned())];
        let wrong = recovery(Ok(late), failed).contradiction().unwrap();
        assert_eq!(wrong, "later than 2s; after 0.00 s: curl: (97) no");
        recovery(Err("no".to_owned()), Vec::new())
            .contradiction()
            .unwrap();
    }
}
