//! The status page in a real browser while a thousand connections are open.
//!
//! ```text
//!   load (page/load.rs) ──▶ kubevpn connect --admin ──▶ the cluster
//!                              ▲ the page, with its events
//!                           Chromium (page/browser.rs) ◀── questions in the page (page/probe.js), pictures
//! ```
//!
//! Rows, numbers, contrast and widths are claims. Times are figures: they depend on the machine.

mod browser;
mod figures;
mod load;
mod proxy;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tracing::info;

use self::browser::Browser;
use self::figures::{SeenScreen, table};
use self::load::HeldConnections;
use self::proxy::{ShownProxy, TrafficCounts};
use crate::Lab;
use crate::check::{CheckClaims, Claim};
use crate::clients::kits::{Kit, Kits};
use crate::interrupt::undone;
use crate::process::until;

/// Open connections.
const CONNECTIONS: usize = 1000;
/// Speed of a wheel that does not stop, in pixels per second.
const SPEED: u32 = 4000;
/// Upper bound on each wait.
const LIMIT: Duration = Duration::from_secs(60);
/// Upper bound on scrolling a list page by page.
const TURNS: Duration = Duration::from_secs(180);
/// Functions for questions to the page.
const PROBE: &str = include_str!("page/probe.js");

/// A screen.
#[derive(Debug)]
struct BrowserWindow {
    name: &'static str,
    width: u32,
    height: u32,
    scale: f64,
}

const SCREENS: [BrowserWindow; 2] = [
    BrowserWindow {
        name: "desktop",
        width: 1280,
        height: 800,
        scale: 1.0,
    },
    BrowserWindow {
        name: "phone",
        width: 390,
        height: 844,
        scale: 2.0,
    },
];
const SCHEMES: [&str; 2] = ["light", "dark"];

/// Result of a run.
#[derive(Debug)]
pub struct SeenPage {
    /// One claim for each check.
    pub claims: Vec<Claim>,
    /// A Markdown table of times.
    pub table: String,
}

impl Lab {
    /// Opens the status page of this `kubevpn` in Chromium, and writes pictures of it into `shots`. The proxy leads to
    /// the cluster, which has to be up, or is `kubevpn demo`.
    ///
    /// # Errors
    /// No cluster; a package that cannot be installed; a program that does not start.
    pub async fn status_page(
        &self,
        kubevpn: &Path,
        demo: bool,
        shots: &Path,
        report: impl FnMut(&Claim),
    ) -> Result<SeenPage> {
        let mut kits = Kits::new(self);
        for name in ["chromium", "chromedriver", "script"] {
            kits.need(Kit::Machine(name)).await?;
        }
        if !demo {
            self.api_ready().await?;
        }
        fs::create_dir_all(shots)?;
        let home = tempfile::tempdir()?;
        let proxy = ShownProxy::start(self, kubevpn, demo, home.path()).await?;
        let c = CheckClaims {
            report,
            all: Vec::new(),
        };
        let seen = async {
            let browser = Browser::start(home.path()).await?;
            let seen = look(c, &proxy, &browser, shots).await;
            let ended = browser.end().await;
            let seen = seen?;
            ended?;
            Ok(seen)
        };
        undone(seen, proxy.end()).await
    }
}

async fn look<F: FnMut(&Claim)>(
    mut c: CheckClaims<F>,
    proxy: &ShownProxy<'_>,
    browser: &Browser,
    shots: &Path,
) -> Result<SeenPage> {
    info!("opening {CONNECTIONS} connections");
    let held = HeldConnections::open(proxy.socks, CONNECTIONS).await?;
    info!("opening the page");
    open(browser, &proxy.page).await?;
    browser.evaluate(PROBE).await?;
    let live = format!("probe.rows() === '{CONNECTIONS}'");
    browser.until("the rows", &live).await?;
    let mut screens = Vec::new();
    for screen in &SCREENS {
        screens.push(SeenScreen::of(browser, screen, shots).await?);
    }
    let per_screen = |of: fn(&SeenScreen) -> String| {
        screens
            .iter()
            .map(|seen| (seen.screen.name, of(seen)))
            .collect::<Vec<_>>()
    };
    c.claim_of(
        "rows in sight are filled and in order in each frame, and each row is seen",
        async {
            Ok(per_screen(|s| {
                format!("{:?} {} {:?}", s.fast.wrong, s.slow.seen, s.slow.wrong)
            }))
        },
        |_| {
            screens.iter().all(|SeenScreen { fast, slow, .. }| {
                fast.wrong.is_empty() && slow.wrong.is_empty() && slow.seen == CONNECTIONS
            })
        },
    )
    .await;
    c.claim_of(
        "the page is no wider than a screen, nothing reaches out of it, and no figure is cut",
        async { Ok(per_screen(|s| format!("{:?}", s.fit))) },
        |_| {
            let mut all = screens.iter().map(|seen| &seen.fit);
            all.all(|fit| fit.wide <= 0.0 && fit.out.is_empty() && fit.cut.is_empty())
        },
    )
    .await;
    c.claim_of(
        "text has a contrast of 4.5 at least, in both schemes",
        async { Ok(per_screen(|s| format!("{:?}", s.contrast))) },
        |_| {
            let mut all = screens.iter().flat_map(|seen| &seen.contrast);
            all.all(|least| least.contrast >= 4.5)
        },
    )
    .await;

    info!("no more requests");
    held.rest();
    let numbers = async {
        let counted = proxy.rested().await?;
        // The page shows the next snapshot once it is drawn.
        let formatted = counted.as_shown(browser).await?;
        let mut shown = Value::Null;
        let same = until(LIMIT, "the numbers in the page", async || {
            shown = browser.evaluate("probe.numbers()").await?;
            Ok((shown == formatted).then_some(()))
        });
        let _different = same.await;
        let sent = browser.evaluate("probe.snapshot().then((seen) => seen.totals)");
        let sent: TrafficCounts = serde_json::from_value(sent.await?)?;
        Ok((counted, sent, proxy.status().await?, shown, formatted))
    };
    c.claim_of(
        "open, connected, refused and bytes are those of /metrics and of `status -o json`",
        numbers,
        |(counted, sent, status, shown, formatted)| {
            let told = status.as_ref().is_none_or(|status| status == counted);
            counted.open == CONNECTIONS as u64 && sent == counted && told && shown == formatted
        },
    )
    .await;
    let counts = without_script(browser, &proxy.page, shots);
    c.claim_of(
        "without script the tables have the same rows",
        counts,
        |counts| {
            let mut all = counts.iter();
            all.all(|(_, with, without)| with == without && *with > 0)
        },
    )
    .await;
    let table = table(&screens);
    Ok(SeenPage {
        claims: c.all,
        table,
    })
}

impl SeenScreen {
    async fn of(browser: &Browser, screen: &'static BrowserWindow, shots: &Path) -> Result<Self> {
        info!("{}: {} × {}", screen.name, screen.width, screen.height);
        resize(browser, screen).await?;
        let begin = "probe.snapshot().then((seen) => probe.begin(probe.keys(seen)))";
        browser.evaluate(begin).await?;
        let at = browser.evaluate("probe.middle()").await?;
        let number = |name: &str| at[name].as_f64().with_context(|| name.to_owned());
        let gesture = json!({
            "x": at["x"], "y": at["y"], "yDistance": -number("far")? - 500.0, "speed": SPEED,
            "gestureSourceType": "mouse",
        });
        browser
            .send("Input.synthesizeScrollGesture", gesture)
            .await?;
        let fast = browser.evaluate("probe.end()").await?;
        // A frame that is late has passed rows over. On the way back each page is waited for.
        browser.evaluate(begin).await?;
        let wheel = json!({"type": "mouseWheel", "x": at["x"], "y": at["y"], "deltaX": 0, "deltaY": -number("page")?});
        until(TURNS, "the top of the list", async || {
            browser
                .send("Input.dispatchMouseEvent", wheel.clone())
                .await?;
            let top = browser.evaluate("probe.drawn().then(probe.top)").await?;
            Ok((top == 0).then_some(()))
        })
        .await?;
        let slow = browser.evaluate("probe.end()").await?;
        let mut contrast = Vec::new();
        for scheme in SCHEMES {
            paint(browser, scheme).await?;
            browser
                .evaluate("document.querySelector('#connections .scroll').scrollTo(0, 5000); scrollTo(0, 0)")
                .await?;
            let name = format!("{}-{scheme}", screen.name);
            shoot(browser, &shots.join(format!("{name}.png"))).await?;
            browser.evaluate("scrollTo(0, 1e6)").await?;
            shoot(browser, &shots.join(format!("{name}-end.png"))).await?;
            browser.evaluate("scrollTo(0, 0)").await?;
            let least = browser.evaluate("probe.least()").await?;
            contrast.push(serde_json::from_value(least)?);
        }
        Ok(Self {
            screen,
            fast: serde_json::from_value(fast)?,
            slow: serde_json::from_value(slow)?,
            fit: serde_json::from_value(browser.evaluate("probe.fit()").await?)?,
            contrast,
        })
    }
}

async fn resize(browser: &Browser, screen: &BrowserWindow) -> Result<()> {
    let metrics = json!({
        "width": screen.width, "height": screen.height, "deviceScaleFactor": screen.scale, "mobile": screen.scale > 1.0,
    });
    browser
        .send("Emulation.setDeviceMetricsOverride", metrics)
        .await?;
    Ok(())
}

async fn paint(browser: &Browser, scheme: &str) -> Result<()> {
    let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
    browser.send("Emulation.setEmulatedMedia", media).await?;
    Ok(())
}

/// A picture of a page that has drawn what was scrolled to.
async fn shoot(browser: &Browser, file: &Path) -> Result<()> {
    browser.evaluate("probe.drawn()").await?;
    browser.shoot(file).await
}

/// Rows of each table, with script and without.
async fn without_script(
    browser: &Browser,
    page: &str,
    shots: &Path,
) -> Result<Vec<(&'static str, usize, usize)>> {
    let mut counts = vec![("connections", CONNECTIONS, 0)];
    for id in ["sessions", "refusals", "listeners", "watches"] {
        counts.push((id, rows(browser, id).await?, 0));
    }
    let disabled = json!({"value": true});
    browser
        .send("Emulation.setScriptExecutionDisabled", disabled)
        .await?;
    open(browser, page).await?;
    for (id, _, without) in &mut counts {
        *without = rows(browser, id).await?;
    }
    for screen in &SCREENS {
        resize(browser, screen).await?;
        let file = format!("{}-without-script.png", screen.name);
        browser.shoot(&shots.join(file)).await?;
    }
    Ok(counts)
}

/// Opens the URL with the token, and waits for the page that it goes on to.
async fn open(browser: &Browser, url: &str) -> Result<()> {
    browser.open(url).await?;
    let is_there =
        "document.getElementById('connections') !== null && document.readyState === 'complete'";
    browser.until("the status page", is_there).await
}

async fn rows(browser: &Browser, id: &str) -> Result<usize> {
    browser.count(&format!("#{id} tbody tr")).await
}
