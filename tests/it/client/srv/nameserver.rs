//! A nameserver on loopback whose answers a test writes, over UDP and over TCP.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

pub(super) const A: u16 = 1;
pub(super) const CNAME: u16 = 5;
pub(super) const AAAA: u16 = 28;
pub(super) const SRV: u16 = 33;

/// A question.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) kind: u16,
    pub(super) is_tcp: bool,
    id: u16,
    /// The question as it was received.
    question: Vec<u8>,
}

/// Returns the messages for a question; none is silence.
type Answer = Box<dyn Fn(&Asked) -> Vec<Vec<u8>> + Send>;

struct Shared {
    answer: Mutex<Answer>,
    asked: Mutex<Vec<Asked>>,
    is_over: AtomicBool,
}

pub(super) struct Nameserver {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Nameserver {
    pub(super) fn start(answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + 'static) -> Nameserver {
        let free = || {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            let udp = UdpSocket::bind(tcp.local_addr().expect("it is bound"));
            Some((tcp, udp.ok()?))
        };
        // Another process may have the port for UDP.
        let (tcp, udp) = (0..100).find_map(|_| free()).expect("a port for both");
        Nameserver::of(tcp, udp, answer)
    }

    /// Starts one at the usual port.
    pub(super) fn start_at_53(
        answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Nameserver {
        let place = (Ipv4Addr::LOCALHOST, 53);
        let tcp = TcpListener::bind(place).expect("it is free");
        let udp = UdpSocket::bind(place).expect("it is free");
        Nameserver::of(tcp, udp, answer)
    }

    fn of(
        tcp: TcpListener,
        udp: UdpSocket,
        answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Nameserver {
        let address = udp.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            answer: Mutex::new(Box::new(answer)),
            asked: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let (of_udp, of_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            thread::spawn(move || serve_udp(&udp, &of_udp)),
            thread::spawn(move || serve_tcp(&tcp, &of_tcp)),
        ];
        Nameserver {
            address,
            shared,
            threads,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes its answers.
    pub(super) fn set(&self, answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + 'static) {
        *self.shared.answer.lock().expect("no panic") = Box::new(answer);
    }

    /// Returns the questions so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("no panic").clone()
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
            let _ = socket.send_to(&[], self.address);
        }
        drop(TcpStream::connect(self.address));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn answer(&self, message: &[u8], is_tcp: bool) -> Vec<Vec<u8>> {
        let Some(asked) = Asked::parse(message, is_tcp) else {
            return Vec::new();
        };
        self.asked.lock().expect("no panic").push(asked.clone());
        self.answer.lock().expect("no panic")(&asked)
    }
}

fn serve_udp(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        if shared.is_over.load(Ordering::Relaxed) {
            return;
        }
        for message in shared.answer(&buffer[..length], false) {
            // Its client may be gone.
            let _ = socket.send_to(&message, from);
        }
    }
}

/// Serves one connection after the other. A message of no bytes keeps the client waiting after the length.
fn serve_tcp(listener: &TcpListener, shared: &Shared) {
    while let Ok((mut stream, _)) = listener.accept() {
        if shared.is_over.load(Ordering::Relaxed) {
            return;
        }
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            continue;
        }
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        if stream.read_exact(&mut message).is_err() {
            continue;
        }
        for message in shared.answer(&message, true) {
            let length = u16::try_from(message.len()).expect("it is no longer");
            let prefix = if message.is_empty() { 100 } else { length };
            let _ = stream.write_all(&[&prefix.to_be_bytes()[..], &message].concat());
        }
        // Until the client leaves.
        let _ = stream.read(&mut [0]);
    }
}

impl Asked {
    fn parse(message: &[u8], is_tcp: bool) -> Option<Asked> {
        let id = u16::from_be_bytes(message.get(..2)?.try_into().ok()?);
        let (mut labels, mut at) = (Vec::new(), 12);
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            let label = message.get(at..at + length)?;
            labels.push(String::from_utf8_lossy(label).into_owned());
            at += length;
        }
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        Some(Asked {
            name: labels.join("."),
            kind,
            is_tcp,
            id,
            question: message.get(12..at + 4)?.to_vec(),
        })
    }

    /// Begins the answer, without an error.
    pub(super) fn reply(&self) -> Message {
        Message {
            id: self.id,
            // A response, recursion is desired and available.
            flags: 0x8180,
            question: self.question.clone(),
            answers: Vec::new(),
            added: Vec::new(),
        }
    }
}

/// An answer.
#[derive(Clone)]
pub(super) struct Message {
    pub(super) id: u16,
    flags: u16,
    pub(super) question: Vec<u8>,
    answers: Vec<Vec<u8>>,
    added: Vec<Vec<u8>>,
}

impl Message {
    /// Sets the error: 2 is SERVFAIL, 3 is NXDOMAIN, 5 is REFUSED.
    pub(super) fn code(mut self, code: u16) -> Message {
        self.flags |= code;
        self
    }

    pub(super) fn truncated(mut self) -> Message {
        self.flags |= 0x0200;
        self
    }

    /// Adds a record of the name that was asked for: its priority, weight, port and target.
    pub(super) fn srv(self, ttl: u32, numbers: [u16; 3], target: &str) -> Message {
        let numbers = numbers.map(u16::to_be_bytes).concat();
        let data = [numbers, name(target)].concat();
        self.answer(&[0xC0, 12], SRV, ttl, &data)
    }

    pub(super) fn a(self, ip: Ipv4Addr) -> Message {
        self.answer(&[0xC0, 12], A, 60, &ip.octets())
    }

    pub(super) fn answer(mut self, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Message {
        self.answers.push(record(owner, kind, ttl, data));
        self
    }

    /// Adds the address of a host to the additional section.
    pub(super) fn with_address(mut self, host: &str, ttl: u32, ip: IpAddr) -> Message {
        self.added.push(match ip {
            IpAddr::V4(ip) => record(&name(host), A, ttl, &ip.octets()),
            IpAddr::V6(ip) => record(&name(host), AAAA, ttl, &ip.octets()),
        });
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let count = |of: &[Vec<u8>]| u16::try_from(of.len()).expect("not as many");
        let questions = u16::from(!self.question.is_empty());
        let numbers = [
            self.id,
            self.flags,
            questions,
            count(&self.answers),
            0,
            count(&self.added),
        ];
        let header = numbers.map(u16::to_be_bytes).concat();
        let (answers, added) = (self.answers.concat(), self.added.concat());
        [header, self.question.clone(), answers, added].concat()
    }

    pub(super) fn once(&self) -> Vec<Vec<u8>> {
        vec![self.bytes()]
    }
}

/// Returns a name on the wire; "" is the root.
pub(super) fn name(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).expect("it is short"));
        wire.extend(label.bytes());
    }
    wire.push(0);
    wire
}

fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let (class, length) = (1_u16, u16::try_from(data.len()).expect("it is short"));
    [
        owner,
        &kind.to_be_bytes(),
        &class.to_be_bytes(),
        &ttl.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}
