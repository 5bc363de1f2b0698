//! CoreDNS, asked as a Pod's resolver asks it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use lab::Lab;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout};
use tokio::time::{Instant, sleep, timeout};

use super::Meaning;

/// Long enough for any machine; reached only when something hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to it; the port-forward ends with this.
pub(super) struct Dns {
    _forward: Child,
    /// kubectl tells of every connection, and ends when nobody could hear it.
    _told: Lines<BufReader<ChildStdout>>,
    stream: TcpStream,
    id: u16,
}

impl Dns {
    /// Through kubectl, which nobody will take for us.
    pub(super) async fn connect(lab: &Lab) -> anyhow::Result<Self> {
        let mut command = lab.kubectl_command(&[
            "port-forward",
            "-n",
            "kube-system",
            "service/kube-dns",
            ":53",
        ]);
        command.stdout(Stdio::piped());
        let mut forward = command.spawn()?;
        let mut lines = BufReader::new(forward.stdout.take().context("it is piped")?).lines();
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .context("kubectl does not say where it listens")??
            .context("kubectl ended")?;
        // "Forwarding from 127.0.0.1:40001 -> 53"
        let address = line.split(' ').nth(2).with_context(|| line.clone())?;
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| line.clone())?;
        stream.set_nodelay(true)?;
        Ok(Self {
            _forward: forward,
            _told: lines,
            stream,
            id: 0,
        })
    }

    /// Waits until it knows this name.
    pub(super) async fn wait_for(&mut self, name: &str) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.one(name).await? == Meaning::Nothing {
            ensure!(Instant::now() < end, "CoreDNS does not learn of {name}");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// What a name means in a Pod of that namespace: the kubelet writes it this search list, and ndots:5.
    pub(super) async fn resolve(&mut self, name: &str, namespace: &str) -> anyhow::Result<Meaning> {
        let mut names = vec![name.to_owned()];
        if !name.ends_with('.') {
            let search = [
                format!("{namespace}.svc.cluster.local"),
                "svc.cluster.local".into(),
                "cluster.local".into(),
            ];
            let search = search.map(|domain| format!("{name}.{domain}."));
            let first = if name.matches('.').count() >= 5 { 1 } else { 0 };
            names.splice(first..first, search);
        }
        for name in names {
            let meaning = self.one(&name).await?;
            if meaning != Meaning::Nothing {
                return Ok(meaning);
            }
        }
        Ok(Meaning::Nothing)
    }

    /// What one name means, of both families.
    async fn one(&mut self, name: &str) -> anyhow::Result<Meaning> {
        let (mut addresses, mut alias) = (BTreeSet::new(), None);
        for record in [RecordType::A, RecordType::AAAA] {
            let answer = timeout(PATIENCE, self.ask(name, record))
                .await
                .with_context(|| format!("CoreDNS does not answer for {name}"))??;
            for record in answer.answers {
                match record.data {
                    RData::A(a) => drop(addresses.insert(IpAddr::V4(a.0))),
                    RData::AAAA(a) => drop(addresses.insert(IpAddr::V6(a.0))),
                    // Each alias of a chain comes after the one that led to it.
                    RData::CNAME(to) => alias = Some(to.0.to_ascii()),
                    _ => {}
                }
            }
        }
        Ok(match (addresses.is_empty(), alias) {
            (false, _) => Meaning::Addresses(addresses),
            (true, Some(to)) => Meaning::Alias(to.trim_end_matches('.').to_owned()),
            (true, None) => Meaning::Nothing,
        })
    }

    async fn ask(&mut self, name: &str, record: RecordType) -> anyhow::Result<Message> {
        self.id = self.id.wrapping_add(1);
        let mut question = Message::new(self.id, MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = true;
        let mut asked = Name::from_ascii(name).with_context(|| name.to_owned())?;
        asked.set_fqdn(true);
        question.add_query(Query::query(asked, record));
        let question = question.to_vec()?;
        let length = u16::try_from(question.len())?;
        self.stream
            .write_all(&[&length.to_be_bytes()[..], &question].concat())
            .await?;
        let mut answer = vec![0; self.stream.read_u16().await?.into()];
        self.stream.read_exact(&mut answer).await?;
        let answer = Message::from_vec(&answer)?;
        ensure!(
            answer.metadata.id == self.id,
            "an answer to another question"
        );
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
            // There is nobody else to ask in this cluster: a name of none of its zones.
            ResponseCode::Refused | ResponseCode::ServFail
                if !name.ends_with("cluster.local.") && !name.ends_with("cluster.local") =>
            {
                Ok(answer)
            }
            code => bail!("CoreDNS says {code} to {name}"),
        }
    }
}
