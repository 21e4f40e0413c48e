//! Daemons that SRV records name (RFC 2782).
//!
//! The records are kept until their time to live is over, or until each target has failed. A connection is made to a
//! target of the lowest priority first. One whose connection was refused or has ended is left until all were tried.

mod answer;
mod exchange;
mod nameservers;
mod order;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::answer::{DnsAnswer, DnsQuestion, SrvRecord};
use self::nameservers::Nameservers;
use super::connect::{ConnectFailure, DaemonSocket, NamedHost, connect_to_one_of, left_of};
use super::options::ClientOptions;
use super::plan::MAX_CAUSES;
use super::{ConnectionError, ResolveError};

/// A name with SRV records.
#[derive(Debug)]
pub(super) struct SrvName {
    /// Without a dot at the end.
    name: String,
    state: Mutex<SrvState>,
}

/// The targets of a name.
#[derive(Debug, Default)]
struct SrvState {
    targets: Vec<Arc<SrvTarget>>,
    /// When the time to live of the records is over.
    until: Option<Instant>,
    /// The targets that have failed, or whose connection has ended, since all targets were tried. The others are tried
    /// first.
    left: Vec<Arc<str>>,
}

/// A target of an SRV record.
#[derive(Debug)]
struct SrvTarget {
    record: SrvRecord,
    /// The name and the port, as users of the client read it.
    daemon: Arc<str>,
    /// The addresses that the nameserver has added to its answer.
    addresses: Vec<SocketAddr>,
    host: NamedHost,
}

impl SrvName {
    /// Parses `_SERVICE._PROTOCOL.NAME`.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn parse(name: &str) -> Result<SrvName, String> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let labels: Vec<&str> = name.split('.').collect();
        let is_service = |label: &&&str| label.len() > 1 && label.starts_with('_');
        if labels.len() < 3 || labels.iter().take(2).filter(is_service).count() < 2 {
            return Err(
                "a name of SRV records is _SERVICE._PROTOCOL.NAME, such as _fdpassd._tcp.example.net"
                    .to_owned(),
            );
        }
        if let Some(label) = labels
            .iter()
            .find(|label| !answer::is_label(label.as_bytes()))
        {
            return Err(format!(
                "{label:?} is not a label of a DNS name: 1 to 63 ASCII letters, digits, \"-\" and \"_\""
            ));
        }
        if name.len() > answer::MAX_NAME {
            return Err(format!(
                "a DNS name has at most {} bytes, this one has {}",
                answer::MAX_NAME,
                name.len()
            ));
        }
        Ok(SrvName {
            name: name.to_owned(),
            state: Mutex::default(),
        })
    }

    /// Connects to the first target that accepts, each within the `connect_timeout`, and all before `deadline`.
    ///
    /// # Errors
    /// Why the targets are not known, or the last reason of each that was tried.
    pub(super) fn connect(
        &self,
        options: &ClientOptions,
        deadline: Instant,
    ) -> Result<DaemonSocket, Vec<ConnectFailure>> {
        let targets = self
            .targets(options, deadline)
            .map_err(|why| vec![(self.to_string().into(), ConnectionError::Resolve(why))])?;
        let mut failures = Vec::new();
        for target in order::in_order(targets, |target| &target.record, order::up_to) {
            if deadline <= Instant::now() {
                break;
            }
            match target.connect(options, deadline) {
                Ok(socket) => {
                    let name = Arc::clone(&target.daemon);
                    return Ok(DaemonSocket { socket, name });
                }
                Err(cause) => {
                    self.note_end(&target.daemon, false);
                    if failures.len() < MAX_CAUSES {
                        failures.push((Arc::clone(&target.daemon), cause));
                    }
                }
            }
        }
        if failures.is_empty() {
            let cause = ConnectionError::Connect(Arc::new(io::ErrorKind::TimedOut.into()));
            failures.push((self.to_string().into(), cause));
        }
        Err(failures)
    }

    /// Notes that the connection to a target has ended, or was not made. After one with replies, all others are tried first.
    pub(super) fn note_end(&self, daemon: &Arc<str>, has_replied: bool) {
        let mut state = self.lock();
        if has_replied {
            state.left.clear();
        }
        if !state.left.contains(daemon) {
            state.left.push(Arc::clone(daemon));
        }
    }

    /// Returns the targets that are tried now. The nameserver is asked if their time to live is over, or if all were tried.
    fn targets(
        &self,
        options: &ClientOptions,
        deadline: Instant,
    ) -> Result<Vec<Arc<SrvTarget>>, ResolveError> {
        let known = {
            let state = self.lock();
            let holds = state.until.is_some_and(|until| Instant::now() < until);
            let untried = state.untried();
            if holds && !untried.is_empty() {
                return Ok(untried);
            }
            holds
        };
        let mut time = left_of(options, deadline);
        if known {
            // The rest is for the targets that are known, if no nameserver answers.
            time /= 2;
        }
        let found = self.resolve(options, time);
        let mut state = self.lock();
        match found {
            Ok((targets, until)) => {
                state.targets = targets;
                state.until = Some(until);
            }
            Err(why) if known && !is_final(&why) => (),
            Err(why) => {
                state.until = None;
                return Err(why);
            }
        }
        let untried = state.untried();
        if !untried.is_empty() {
            return Ok(untried);
        }
        state.left.clear();
        Ok(state.targets.clone())
    }

    /// Asks the nameservers. Returns the targets, and when their time to live is over.
    fn resolve(
        &self,
        options: &ClientOptions,
        time: Duration,
    ) -> Result<(Vec<Arc<SrvTarget>>, Instant), ResolveError> {
        let nameservers = Nameservers::of(options)?;
        let asked = Instant::now();
        let question = DnsQuestion::srv(&self.name);
        let (answer, nameserver) = exchange::ask(&nameservers, &question, asked + time)?;
        let (targets, seconds) = targets_of(answer, nameserver)?;
        Ok((targets, asked + Duration::from_secs(u64::from(seconds))))
    }

    fn lock(&self) -> MutexGuard<'_, SrvState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for SrvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "srv:{}", self.name)
    }
}

impl SrvState {
    fn untried(&self) -> Vec<Arc<SrvTarget>> {
        let targets = self.targets.iter();
        targets
            .filter(|target| !self.left.contains(&target.daemon))
            .map(Arc::clone)
            .collect()
    }
}

impl SrvTarget {
    fn connect(
        &self,
        options: &ClientOptions,
        deadline: Instant,
    ) -> Result<UnixStream, ConnectionError> {
        let failed = |error| ConnectionError::Connect(Arc::new(error));
        let left = || left_of(options, deadline);
        let addresses = if !self.addresses.is_empty() {
            self.addresses.clone()
        } else if options.nameservers.is_some() {
            self.ask_for_addresses(options, left())
                .map_err(ConnectionError::Resolve)?
        } else {
            self.host.look_up(left()).map_err(failed)?
        };
        connect_to_one_of(addresses, left).map_err(failed)
    }

    /// Asks the nameservers of the options, which may know other names than those of the system.
    fn ask_for_addresses(
        &self,
        options: &ClientOptions,
        time: Duration,
    ) -> Result<Vec<SocketAddr>, ResolveError> {
        let nameservers = Nameservers::of(options)?;
        let now = Instant::now();
        let questions = [
            (DnsQuestion::aaaa(&self.record.target), now + time / 2),
            (DnsQuestion::a(&self.record.target), now + time),
        ];
        let mut found = Vec::new();
        let mut failure = None;
        for (question, deadline) in questions {
            match exchange::ask(&nameservers, &question, deadline) {
                Ok((answer, _)) => found.extend(answer.addresses),
                Err(why @ ResolveError::NoRecords { .. }) => {
                    failure.get_or_insert(why);
                }
                Err(why) => failure = Some(why),
            }
        }
        let port = self.record.port;
        let found: Vec<SocketAddr> = found
            .into_iter()
            .map(|(_, address)| SocketAddr::new(address.ip, port))
            .collect();
        match failure {
            Some(why) if found.is_empty() => Err(why),
            _ => Ok(found),
        }
    }
}

/// Returns whether the answer holds for all nameservers: the targets that were known are not valid any more.
fn is_final(why: &ResolveError) -> bool {
    matches!(
        why,
        ResolveError::NoSuchName | ResolveError::NoRecords { .. } | ResolveError::NotAvailable
    )
}

/// Returns the targets of an answer, and their time to live in seconds.
fn targets_of(
    answer: DnsAnswer,
    nameserver: SocketAddr,
) -> Result<(Vec<Arc<SrvTarget>>, u32), ResolveError> {
    let DnsAnswer {
        records,
        addresses,
        mut ttl,
    } = answer;
    if records.iter().all(|record| record.target.is_empty()) {
        return Err(ResolveError::NotAvailable);
    }
    let mut targets: Vec<Arc<SrvTarget>> = Vec::new();
    for record in records {
        let is_usable = record.port != 0 && answer::is_name(&record.target);
        let daemon: Arc<str> = format!("{}:{}", record.target, record.port).into();
        let is_known = targets.iter().any(|target| target.daemon == daemon);
        if !is_usable || is_known {
            continue;
        }
        let mut found = Vec::new();
        for (name, address) in &addresses {
            if name.eq_ignore_ascii_case(&record.target) {
                found.push(SocketAddr::new(address.ip, record.port));
                ttl = ttl.min(address.ttl);
            }
        }
        targets.push(Arc::new(SrvTarget {
            host: NamedHost::new(&record.target, record.port),
            addresses: found,
            daemon,
            record,
        }));
    }
    if targets.is_empty() {
        let why = "no target has the name of a host and a port".to_owned();
        return Err(ResolveError::BadAnswer { nameserver, why });
    }
    Ok((targets, ttl))
}
