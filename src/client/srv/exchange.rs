//! A question and its answer: over UDP, and over TCP if the answer is too long for a datagram.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::ResolveError;
use super::super::options::random;
use super::answer::{DnsAnswer, DnsMessage, DnsQuestion};
use super::nameservers::Nameservers;

/// The longest message.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// Why an attempt has no answer.
enum Attempt {
    /// No other nameserver knows more.
    Final(ResolveError),
    /// Another one may answer.
    Failed(ResolveError),
    /// The time of the attempt is over.
    Late,
}

/// Asks the nameservers, one after the other, until one of them answers. Returns the answer and its sender.
///
/// # Errors
/// The name has no such records, or the last error of a nameserver.
pub(super) fn ask(
    nameservers: &Nameservers,
    question: &DnsQuestion<'_>,
    deadline: Instant,
) -> Result<(DnsAnswer, SocketAddr), ResolveError> {
    let begin = Instant::now();
    let left = || deadline.saturating_duration_since(Instant::now());
    let count = nameservers.addresses.len();
    let mut attempts =
        u32::try_from(count).map_or(u32::MAX, |n| n.saturating_mul(nameservers.attempts));
    let mut failure = None;
    for nameserver in nameservers.addresses.iter().cycle() {
        if attempts == 0 || left().is_zero() {
            break;
        }
        // Each of the attempts has its share of the time.
        let share = (left() / attempts).min(nameservers.timeout);
        attempts -= 1;
        match attempt(*nameserver, question, Instant::now() + share) {
            Ok(answer) => return Ok((answer, *nameserver)),
            Err(Attempt::Final(why)) => return Err(why),
            Err(Attempt::Failed(why)) => failure = Some(why),
            Err(Attempt::Late) => (),
        }
    }
    Err(failure.unwrap_or_else(|| {
        let time = begin.elapsed().as_millis();
        ResolveError::Timeout(Duration::from_millis(
            u64::try_from(time).unwrap_or(u64::MAX),
        ))
    }))
}

/// Asks a nameserver once.
fn attempt(
    nameserver: SocketAddr,
    question: &DnsQuestion<'_>,
    until: Instant,
) -> Result<DnsAnswer, Attempt> {
    let bad = |why: String| Attempt::Failed(ResolveError::BadAnswer { nameserver, why });
    let unreachable = |error: io::Error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Attempt::Late,
        _ => Attempt::Failed(ResolveError::Unreachable {
            nameserver,
            cause: Arc::new(error),
        }),
    };
    // The port of the socket is random too: the kernel chooses it.
    let id = (random() >> 16) as u16;
    let message = question.message(id).map_err(bad)?;
    let mut received =
        over_udp(nameserver, (question, id), &message, until).map_err(unreachable)?;
    if matches!(received, DnsMessage::Truncated) {
        let answer = over_tcp(nameserver, &message, until).map_err(unreachable)?;
        received = question.check(id, &answer);
    }
    match received {
        DnsMessage::Answer(answer) => Ok(answer),
        DnsMessage::Final(why) => Err(Attempt::Final(why)),
        DnsMessage::Failed(code) => Err(Attempt::Failed(ResolveError::ServerFailed {
            nameserver,
            code,
        })),
        DnsMessage::Bad(why) => Err(bad(why)),
        DnsMessage::Foreign => Err(bad("it is the answer to another question".to_owned())),
        DnsMessage::Truncated => Err(bad("it is truncated over TCP too".to_owned())),
    }
}

/// Sends a question in a datagram. Returns the first message of the nameserver that has this question.
fn over_udp(
    nameserver: SocketAddr,
    (question, id): (&DnsQuestion<'_>, u16),
    message: &[u8],
    until: Instant,
) -> io::Result<DnsMessage> {
    let any: SocketAddr = match nameserver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    // The kernel then takes datagrams of this address only, and reports that no nameserver is there.
    socket.connect(nameserver)?;
    socket.send(message)?;
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        socket.set_read_timeout(Some(left_until(until)?))?;
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match question.check(id, &buffer[..length]) {
            DnsMessage::Foreign => (),
            received => return Ok(received),
        }
    }
}

/// Sends a question over a connection. Returns the first message.
fn over_tcp(nameserver: SocketAddr, message: &[u8], until: Instant) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&nameserver, left_until(until)?)?;
    let mut prefixed = u16::try_from(message.len())
        .map_err(io::Error::other)?
        .to_be_bytes()
        .to_vec();
    prefixed.extend_from_slice(message);
    // A question fits in the buffer of the socket, so that one write is enough.
    stream.set_write_timeout(Some(left_until(until)?))?;
    stream.write_all(&prefixed)?;
    let mut length = [0; 2];
    read_all(&mut stream, &mut length, until)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    read_all(&mut stream, &mut answer, until)?;
    Ok(answer)
}

/// Fills a buffer, whose bytes may arrive one by one.
fn read_all(stream: &mut TcpStream, mut buffer: &mut [u8], until: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_read_timeout(Some(left_until(until)?))?;
        match stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns the time until then.
///
/// # Errors
/// It is over.
fn left_until(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    Ok(left)
}
