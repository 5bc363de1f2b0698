//! Answers to DNS clients, from the objects and from the cluster's DNS.

use std::net::IpAddr;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{Name as DnsName, RData, Record as DnsRecord, RecordType};
use kubevpn_cluster::{KnownRecords, NameRecord, RecordKind, Records, Subscription};
use kubevpn_target::{BoxError, ConnectError, Host, Name, Refusal, Stream};
use tower_service::Service;

use super::fetch;
use crate::Resolve;

/// TTL of answers: CoreDNS's default.
const TTL: u32 = 5;

impl<S, E> Resolve<S, E>
where
    S: Service<Subscription> + Clone,
    S::Response: Stream,
    S::Error: Into<BoxError>,
{
    /// Answers a query for the cluster's names, or its addresses (PTR), as its DNS would. Only the answer's response code and
    /// sections are set; the caller fills in ID and question.
    ///
    /// Errors: [`Refusal::Denied`] for a name outside the cluster; any other error means that the cluster could not be
    /// asked. NXDOMAIN is an answer.
    ///
    /// Cancellation: as [`resolve`](Self::resolve).
    pub async fn answer(&self, query: &Query) -> Result<Message, ConnectError> {
        let (zone, known) = self.look(query).await?;
        let records = match known {
            KnownRecords::Records(records) => {
                self.connects_next(query, &records);
                Ok(records)
            }
            KnownRecords::Missing => Err(()),
            KnownRecords::Outside => return Err(not_ours(query)),
            KnownRecords::Ask { otherwise } => {
                let fetch = fetch(query, &self.cluster, &self.pods);
                let failed = match self.dns.messages.ask(query, fetch).await {
                    Ok(message) => return Ok(message),
                    Err(failed) => failed,
                };
                match otherwise {
                    Some(Ok(records)) => Ok(records),
                    Some(Err(error)) if error.refusal() == Refusal::NameNotFound => Err(()),
                    _ => return Err(unknown(&failed)),
                }
            }
        };
        Ok(written(query, &zone, records))
    }

    /// The answer from the objects, and the zone of the name.
    async fn look(&self, query: &Query) -> Result<(DnsName, KnownRecords), ConnectError> {
        let name = query.name();
        if let Some((zone, ip)) = reverse(name) {
            let known = match query.query_type() {
                RecordType::PTR => self.cluster.pointers(ip).await?,
                _ => KnownRecords::Outside,
            };
            return Ok((zone, known));
        }
        let wanted = match query.query_type() {
            RecordType::A => RecordKind::A,
            RecordType::AAAA => RecordKind::Aaaa,
            RecordType::SRV => RecordKind::Srv,
            _ => RecordKind::Other,
        };
        let known = match Name::parse(&name.to_ascii()) {
            Ok(name) => self.cluster.records(&name, wanted).await?,
            // No object can have this name.
            Err(_) => KnownRecords::Ask { otherwise: None },
        };
        if let KnownRecords::Outside = known {
            return Err(not_ours(query));
        }
        let domain = self.cluster.domain().await;
        let zones = domain.endings().filter_map(|ending| in_full(ending).ok());
        match zones.into_iter().find(|zone| zone.zone_of(name)) {
            Some(zone) => Ok((zone, known)),
            None => Err(not_ours(query)),
        }
    }

    /// Opens a session to one of the Pods of a Service whose address was asked for: the client normally connects next.
    fn connects_next(&self, query: &Query, records: &Records) {
        let asked = matches!(query.query_type(), RecordType::A | RecordType::AAAA);
        let name = Name::parse(&query.name().to_ascii());
        let (true, false, Ok(name)) = (asked, records.answers.is_empty(), name) else {
            return;
        };
        self.warm(Host::Name(name));
    }
}

/// A missing DNS Service does not mean that the name does not exist.
fn unknown(failed: &ConnectError) -> ConnectError {
    let refusal = match failed.refusal() {
        Refusal::NameNotFound | Refusal::Denied => Refusal::Unreachable,
        other => other,
    };
    ConnectError::new(refusal, failed.to_string())
}

fn not_ours(query: &Query) -> ConnectError {
    let name = query.name();
    ConnectError::new(
        Refusal::Denied,
        format!(
            "{name} is not of the cluster: ask another server, or name one with --dns-upstream"
        ),
    )
}

fn in_full(name: &Name) -> Result<DnsName, hickory_proto::ProtoError> {
    DnsName::from_ascii(format!("{}.", name.as_str()))
}

/// The address of a complete name under `in-addr.arpa` or `ip6.arpa`, and its zone.
fn reverse(name: &DnsName) -> Option<(DnsName, IpAddr)> {
    let zone = ["in-addr.arpa.", "ip6.arpa."]
        .iter()
        .filter_map(|zone| DnsName::from_ascii(zone).ok())
        .find(|zone| zone.zone_of(name))?;
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| (zone, net.addr()))
}

/// The records as a message. Without any, the zone's SOA gives the lifetime of the negative answer (RFC 2308).
fn written(query: &Query, zone: &DnsName, records: Result<Records, ()>) -> Message {
    let mut message = Message::response(0, OpCode::Query);
    message.metadata.authoritative = true;
    let exists = records.is_ok();
    let records = records.unwrap_or_default();
    let answers = records.answers.into_iter().filter_map(data);
    message.add_answers(answers.map(|data| DnsRecord::from_rdata(query.name().clone(), TTL, data)));
    let additional = records.additional.into_iter();
    message.add_additionals(additional.filter_map(|(name, ip)| {
        let name = in_full(&name).ok()?;
        Some(DnsRecord::from_rdata(name, TTL, address(ip)))
    }));
    if !exists {
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    if message.answers.is_empty() {
        message.add_authorities(soa(zone));
    }
    message
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn data(record: NameRecord) -> Option<RData> {
    Some(match record {
        NameRecord::Address(ip) => address(ip),
        NameRecord::Service {
            weight,
            port,
            target,
        } => RData::SRV(SRV::new(0, weight, port, in_full(&target).ok()?)),
        NameRecord::Alias(name) => RData::CNAME(CNAME(in_full(&name).ok()?)),
        NameRecord::Pointer(name) => RData::PTR(PTR(in_full(&name).ok()?)),
    })
}

/// The SOA that CoreDNS returns, except for the serial number, which matters for zone transfers only.
fn soa(zone: &DnsName) -> Option<DnsRecord> {
    let under = |labels: &str| {
        let labels = DnsName::from_ascii(labels).ok()?;
        labels.append_domain(zone).ok()
    };
    let soa = SOA::new(
        under("ns.dns")?,
        under("hostmaster")?,
        1,
        7200,
        1800,
        86400,
        TTL,
    );
    Some(DnsRecord::from_rdata(zone.clone(), TTL, RData::SOA(soa)))
}
