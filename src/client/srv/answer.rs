//! Questions for a nameserver, and its answers. Nothing in an answer is trusted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};

use super::super::ResolveError;

/// The longest name, and the longest label of it, in bytes of its text.
pub(super) const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// The most aliases (CNAME) that are followed from a name.
const MAX_ALIASES: usize = 16;

/// A question.
#[derive(Clone, Copy, Debug)]
pub(super) struct DnsQuestion<'a> {
    name: &'a str,
    kind: TYPE,
}

/// An SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SrvRecord {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    /// Without a dot at the end: empty if the service is not available.
    pub(super) target: String,
}

/// An address of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostAddress {
    pub(super) ip: IpAddr,
    /// In seconds.
    pub(super) ttl: u32,
}

/// The records in an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DnsAnswer {
    pub(super) records: Vec<SrvRecord>,
    /// Addresses by the names of their hosts: those that were asked for, or those that the nameserver has added.
    pub(super) addresses: Vec<(String, HostAddress)>,
    /// How long the records hold, in seconds.
    pub(super) ttl: u32,
}

/// A message that has arrived.
#[derive(Debug)]
pub(super) enum DnsMessage {
    /// The message is not the answer to the question.
    Foreign,
    /// The answer is longer than a datagram may be.
    Truncated,
    Answer(DnsAnswer),
    /// No other nameserver knows more.
    Final(ResolveError),
    /// The nameserver has failed, by this code.
    Failed(String),
    /// The answer is not valid.
    Bad(String),
}

impl<'a> DnsQuestion<'a> {
    pub(super) fn srv(name: &'a str) -> DnsQuestion<'a> {
        DnsQuestion {
            name,
            kind: TYPE::SRV,
        }
    }

    pub(super) fn a(name: &'a str) -> DnsQuestion<'a> {
        DnsQuestion {
            name,
            kind: TYPE::A,
        }
    }

    pub(super) fn aaaa(name: &'a str) -> DnsQuestion<'a> {
        DnsQuestion {
            name,
            kind: TYPE::AAAA,
        }
    }

    /// Returns the message that asks it.
    ///
    /// # Errors
    /// The name is too long.
    pub(super) fn message(&self, id: u16) -> Result<Vec<u8>, String> {
        let name = Name::new(self.name).map_err(|e| e.to_string())?;
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let (kind, class) = (QTYPE::TYPE(self.kind), QCLASS::CLASS(CLASS::IN));
        let question = simple_dns::Question::new(name, kind, class, false);
        packet.questions.push(question);
        packet.build_bytes_vec().map_err(|e| e.to_string())
    }

    /// Returns what a message is.
    pub(super) fn check(&self, id: u16, message: &[u8]) -> DnsMessage {
        if simple_dns::header_buffer::id(message).ok() != Some(id) {
            return DnsMessage::Foreign;
        }
        let packet = match Packet::parse(message) {
            Ok(packet) => packet,
            // Its records are not used.
            Err(_) if is_truncated(message) => return DnsMessage::Truncated,
            Err(error) => return DnsMessage::Bad(error.to_string()),
        };
        if !packet.has_flags(PacketFlag::RESPONSE) || !self.is_of(&packet) {
            return DnsMessage::Foreign;
        }
        if packet.has_flags(PacketFlag::TRUNCATION) {
            return DnsMessage::Truncated;
        }
        match packet.rcode() {
            RCODE::NoError => self.answer(&packet),
            RCODE::NameError => DnsMessage::Final(ResolveError::NoSuchName),
            other => DnsMessage::Failed(code(other)),
        }
    }

    /// Returns whether a message has this question. An error may have none.
    fn is_of(&self, packet: &Packet<'_>) -> bool {
        let is_error = !matches!(packet.rcode(), RCODE::NoError | RCODE::NameError);
        match packet.questions.as_slice() {
            [] => is_error,
            [question] => {
                question.qtype == QTYPE::TYPE(self.kind)
                    && question.qclass == QCLASS::CLASS(CLASS::IN)
                    && is_same(&question.qname, self.name)
            }
            _ => false,
        }
    }

    fn answer(&self, packet: &Packet<'_>) -> DnsMessage {
        let (records, ttl) = match self.records(&packet.answers) {
            Ok(found) => found,
            Err(why) => return DnsMessage::Bad(why),
        };
        let mut answer = DnsAnswer {
            ttl,
            ..DnsAnswer::default()
        };
        if self.kind == TYPE::SRV {
            let records = records.into_iter();
            answer.records = records.filter_map(srv_record).collect();
            let added = packet.additional_records.iter();
            answer.addresses = added.filter_map(address).collect();
        } else {
            answer.addresses = records.into_iter().filter_map(address).collect();
        }
        if answer.records.is_empty() && (self.kind == TYPE::SRV || answer.addresses.is_empty()) {
            let kind = match self.kind {
                TYPE::SRV => "SRV",
                _ => "A or AAAA",
            };
            return DnsMessage::Final(ResolveError::NoRecords { kind });
        }
        DnsMessage::Answer(answer)
    }

    /// Returns the records of the name, or of the name that it is an alias of, and their time to live.
    fn records<'p>(
        &self,
        answers: &'p [ResourceRecord<'p>],
    ) -> Result<(Vec<&'p ResourceRecord<'p>>, u32), String> {
        let mut owner = self.name.to_owned();
        let mut ttl = u32::MAX;
        for _ in 0..=MAX_ALIASES {
            let of_owner = |record: &&ResourceRecord<'_>| {
                record.class == CLASS::IN && is_same(&record.name, &owner)
            };
            let of_kind = answers
                .iter()
                .filter(|record| record.match_qtype(QTYPE::TYPE(self.kind)));
            let found: Vec<_> = of_kind.filter(of_owner).collect();
            if !found.is_empty() {
                let all = found.iter().map(|record| seconds(record.ttl));
                return Ok((found.clone(), all.fold(ttl, u32::min)));
            }
            let alias = answers.iter().filter(of_owner).find_map(alias);
            let Some((name, seconds)) = alias else {
                return Ok((Vec::new(), 0));
            };
            ttl = ttl.min(seconds);
            owner = name;
        }
        Err(format!(
            "the name is an alias of an alias, more than {MAX_ALIASES} times, or of itself"
        ))
    }
}

/// Returns whether a label is one of a host or of a service.
pub(super) fn is_label(label: &[u8]) -> bool {
    let is_usual = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=MAX_LABEL).contains(&label.len()) && label.iter().all(is_usual)
}

/// Returns whether a text is the name of a host.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME && text.split('.').all(|label| is_label(label.as_bytes()))
}

/// Returns whether two names are the same. Upper and lower case are not distinguished.
fn is_same(name: &Name<'_>, text: &str) -> bool {
    let mut labels = text.split('.');
    let is_same = name.as_bytes().all(|label| {
        labels
            .next()
            .is_some_and(|other| label.eq_ignore_ascii_case(other.as_bytes()))
    });
    is_same && labels.next().is_none()
}

/// Returns the text of a name if its labels are usual ones; that of the root is empty.
fn text(name: &Name<'_>) -> Option<String> {
    let labels: Option<Vec<&str>> = name
        .as_bytes()
        .map(|label| str::from_utf8(label).ok().filter(|_| is_label(label)))
        .collect();
    Some(labels?.join("."))
}

/// Returns a time to live: with the highest bit it counts as 0 (RFC 2181, section 8).
fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

/// Returns the name that a record is an alias of, and its time to live.
fn alias(record: &ResourceRecord<'_>) -> Option<(String, u32)> {
    match &record.rdata {
        RData::CNAME(name) => Some((text(&name.0)?, seconds(record.ttl))),
        _ => None,
    }
}

fn srv_record(record: &ResourceRecord<'_>) -> Option<SrvRecord> {
    match &record.rdata {
        RData::SRV(srv) => Some(SrvRecord {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            // The name of no host: not valid, and not the root.
            target: text(&srv.target).unwrap_or_else(|| "?".to_owned()),
        }),
        _ => None,
    }
}

fn address(record: &ResourceRecord<'_>) -> Option<(String, HostAddress)> {
    let ip = match &record.rdata {
        RData::A(a) => IpAddr::V4(Ipv4Addr::from(a.address)),
        RData::AAAA(aaaa) => IpAddr::V6(Ipv6Addr::from(aaaa.address)),
        _ => return None,
    };
    let ttl = seconds(record.ttl);
    let name = text(&record.name).filter(|_| record.class == CLASS::IN)?;
    Some((name, HostAddress { ip, ttl }))
}

fn is_truncated(message: &[u8]) -> bool {
    simple_dns::header_buffer::has_flags(message, PacketFlag::RESPONSE | PacketFlag::TRUNCATION)
        .unwrap_or(false)
}

fn code(code: RCODE) -> String {
    match code {
        RCODE::FormatError => "FORMERR".to_owned(),
        RCODE::ServerFailure => "SERVFAIL".to_owned(),
        RCODE::NotImplemented => "NOTIMP".to_owned(),
        RCODE::Refused => "REFUSED".to_owned(),
        other => format!("{other:?}"),
    }
}
