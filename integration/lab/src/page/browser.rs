//! Debian's Chromium without a window, driven through chromedriver: WebDriver for the session, and the DevTools protocol
//! for what WebDriver does not have: sizes of screens, colour schemes, wheels, pages without script.
//!
//! The crates for WebDriver depend on `webdriver`, whose licence (MPL-2.0) `.deny.toml` does not allow. Three requests
//! are enough here, and curl sends them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use crate::command::{command, output, output_of_input};
use crate::process::until;

/// Upper bound on each wait.
const LIMIT: Duration = Duration::from_secs(60);

/// A browser with one page. It ends with chromedriver, because the pipe between them is closed then.
pub(super) struct Browser {
    /// URL of the WebDriver session.
    session: String,
    _driver: Child,
}

impl Browser {
    /// Starts a browser whose files are in `home`.
    pub(super) async fn start(home: &Path) -> Result<Self> {
        let mut driver = command("chromedriver")?
            .arg("--port=0")
            .env("HOME", home)
            .current_dir(home)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = driver.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let port = async {
            loop {
                let line = lines.next_line().await?.context("chromedriver has ended")?;
                // ChromeDriver was started successfully on port 40155.
                if let Some((_, port)) = line.split_once(" successfully on port ") {
                    return anyhow::Ok(port.trim_end_matches('.').to_owned());
                }
            }
        };
        let port = timeout(LIMIT, port)
            .await
            .context("chromedriver does not say its port")??;
        // Whatever else it prints must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let driver_url = format!("http://127.0.0.1:{port}/session");
        let arguments = [
            "--headless",
            "--no-sandbox",
            // A turn of the wheel takes one frame.
            "--disable-smooth-scrolling",
            "--no-proxy-server",
            "--disable-background-networking",
            "--remote-debugging-pipe",
            &format!("--user-data-dir={}", home.join("chromium").display()),
        ];
        let wanted =
            json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}});
        let answer = post(&driver_url, &wanted).await?;
        let id = answer["sessionId"].as_str().context("no session")?;
        Ok(Self {
            session: format!("{driver_url}/{id}"),
            _driver: driver,
        })
    }

    /// Sends a command of the DevTools protocol, <https://chromedevtools.github.io/devtools-protocol/>.
    pub(super) async fn send(&self, method: &str, parameters: Value) -> Result<Value> {
        let url = format!("{}/goog/cdp/execute", self.session);
        let sent = post(&url, &json!({"cmd": method, "params": parameters})).await;
        sent.with_context(|| method.to_owned())
    }

    /// The value of an expression in the page; of a promise, what it comes to.
    pub(super) async fn evaluate(&self, expression: &str) -> Result<Value> {
        let parameters =
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.send("Runtime.evaluate", parameters).await?;
        let thrown = &answer["exceptionDetails"];
        ensure!(thrown.is_null(), "{expression}: {thrown}");
        Ok(answer["result"]["value"].take())
    }

    /// Opens a page, and waits until its files are loaded.
    pub(super) async fn open(&self, url: &str) -> Result<()> {
        let answer = self.send("Page.navigate", json!({"url": url})).await?;
        ensure!(answer["errorText"].is_null(), "{url}: {answer}");
        self.until(
            &format!("the page {url}"),
            "document.readyState === 'complete'",
        )
        .await
    }

    /// Waits until an expression is true.
    pub(super) async fn until(&self, what: &str, expression: &str) -> Result<()> {
        until(LIMIT, what, async || {
            Ok((self.evaluate(expression).await? == true).then_some(()))
        })
        .await
    }

    /// Number of elements that a selector finds. Works without script.
    pub(super) async fn count(&self, selector: &str) -> Result<usize> {
        let document = self.send("DOM.getDocument", json!({"depth": 0})).await?;
        let parameters = json!({"nodeId": document["root"]["nodeId"], "selector": selector});
        let found = self.send("DOM.querySelectorAll", parameters).await?;
        let found = found["nodeIds"].as_array().context("a list of nodes")?;
        Ok(found.len())
    }

    /// Writes a picture of what is in sight.
    pub(super) async fn shoot(&self, file: &Path) -> Result<()> {
        let shot = self.send("Page.captureScreenshot", json!({"format": "png"}));
        let shot = shot.await?;
        let png = BASE64_STANDARD.decode(shot["data"].as_str().context("a picture")?)?;
        std::fs::write(file, png).with_context(|| file.display().to_string())
    }

    /// Ends the browser.
    pub(super) async fn end(self) -> Result<()> {
        let mut curl = command("curl")?;
        output(curl.args(["-sS", "--noproxy", "*", "-X", "DELETE", &self.session])).await?;
        Ok(())
    }
}

/// The value of an answer of WebDriver.
async fn post(url: &str, body: &Value) -> Result<Value> {
    let mut curl = command("curl")?;
    curl.args(["-sS", "--noproxy", "*", "--max-time", "120"])
        .args([
            "-H",
            "content-type: application/json",
            "--data-binary",
            "@-",
            url,
        ]);
    let answer = output_of_input(&mut curl, &body.to_string()).await?;
    let mut answer: Value = serde_json::from_str(&answer)?;
    let value = answer["value"].take();
    ensure!(value["error"].is_null(), "{}", value["message"]);
    Ok(value)
}
