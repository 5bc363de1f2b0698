//! Tables of targets and what comes of them.

use crate::{Curl, Proxy};

/// What a target leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leads<'a> {
    /// To a program of this name (`NAME` of the echo image).
    To(&'a str),
    /// To the Pod of this host name.
    ToPod(&'a str),
    /// To this port in the Pod.
    ToPort(u16),
    /// To a refusal: this SOCKS5 reply, and a line in the log that has all of these words.
    Nowhere(u8, &'a [&'a str]),
}

/// A host and port, written as in a URL, and what it is to lead to.
pub(crate) struct TargetRow<'a>(pub(crate) String, pub(crate) Leads<'a>);

/// `row("web:80", To("web"))`
pub(crate) fn row<'a>(target: impl Into<String>, leads: Leads<'a>) -> TargetRow<'a> {
    TargetRow(target.into(), leads)
}

/// Asks for each through the proxy with curl. The error has every row that went elsewhere.
pub(crate) async fn check(proxy: &mut Proxy, rows: &[TargetRow<'_>]) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for TargetRow(target, leads) in rows {
        if let Err(error) = one(proxy, target, *leads).await {
            wrong.push(format!("{target} should lead {leads:?}: {error:#}"));
        }
    }
    anyhow::ensure!(
        wrong.is_empty(),
        "{}\nthe log:\n{}",
        wrong.join("\n"),
        proxy.log()
    );
    Ok(())
}

async fn one(proxy: &mut Proxy, target: &str, leads: Leads<'_>) -> anyhow::Result<()> {
    let answer = Curl::get(proxy.socks, &format!("http://{target}/")).await?;
    let answered = match leads {
        Leads::Nowhere(reply, words) => {
            answer.refused_with(reply)?;
            return proxy.logged(words).await;
        }
        _ => answer.json()?,
    };
    let field = |name: &str| answered[name].as_str().unwrap_or_default();
    let as_wanted = match leads {
        Leads::To(name) => field("service") == name,
        Leads::ToPod(pod) => field("hostname") == pod,
        Leads::ToPort(port) => field("local").ends_with(&format!(":{port}")),
        Leads::Nowhere(..) => false,
    };
    anyhow::ensure!(as_wanted, "it led to {answered}");
    Ok(())
}
