//! Clients for the tests under systemd: they stay connected whatever happens to the daemon, and count the results.
//!
//! ```text
//! load METHOD IDLE BUSY ADDRESS…
//! ```
//!
//! METHOD returns its params: `ping`, or the `echo` of an app. IDLE clients send one request and stay connected, BUSY
//! clients send requests continuously, and short connections with one request each follow one another. Prints `ready`
//! when all clients are connected, and runs until the end of standard input. Then each idle client sends another
//! request, and one line reports how many requests were answered, how many short connections were made, the longest
//! wait for a reply, and how many clients were lost or refused. Clients that were cut before their first reply are
//! counted separately: a master that is killed loses the clients that it has accepted and not yet leased. With an app,
//! one more client for each address orders continuously: `order` is not idempotent and returns its number, or `crashed`
//! if the app died in it. METHOD is idempotent: its requests are answered with `crashed` only if they met two deaths,
//! and are then counted as `twice`. The exit status is 0 if no other client was lost and none was refused.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any restart.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The pause of a busy client between two requests.
const REQUEST_INTERVAL: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Seen {
    method: String,
    over: AtomicBool,
    requests: AtomicU64,
    orders: AtomicU64,
    crashed: AtomicU64,
    twice: AtomicU64,
    comers: AtomicU64,
    lost: AtomicU64,
    early: AtomicU64,
    refused: AtomicU64,
    longest: Mutex<Duration>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [method, idle, busy, addresses @ ..] = arguments.as_slice() else {
        return usage();
    };
    let (Ok(idle), Ok(busy)) = (idle.parse::<usize>(), busy.parse::<usize>()) else {
        return usage();
    };
    if addresses.is_empty() {
        return usage();
    }
    let seen = Seen {
        method: method.clone(),
        ..Seen::default()
    };
    let at = |index: usize| addresses[index % addresses.len()].as_str();
    let mut clients: Vec<Client> = (0..idle)
        .filter_map(|index| seen.connect(at(index)))
        .collect();
    for (client, number) in clients.iter_mut().zip(0..) {
        seen.ask(client, number, &seen.lost);
    }
    thread::scope(|threads| {
        for index in 0..busy {
            let client = seen.connect(at(index));
            threads.spawn(|| seen.keep_asking(client));
        }
        for (address, index) in addresses.iter().zip(1..) {
            let seen = &seen;
            threads.spawn(|| seen.come_and_go(address));
            if method != "ping" {
                threads.spawn(move || seen.keep_ordering(address, index * 1_000_000));
            }
        }
        let _ = writeln!(io::stdout(), "ready");
        let _ = io::stdin().read_to_end(&mut Vec::new());
        seen.over.store(true, Ordering::Relaxed);
    });
    for (client, number) in clients.iter_mut().zip(1_000_000..) {
        seen.ask(client, number, &seen.lost);
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (lost, refused) = (count(&seen.lost), count(&seen.refused));
    let longest = seen.longest.lock().map_or(0, |longest| longest.as_millis());
    let (requests, comers, early) = (
        count(&seen.requests),
        count(&seen.comers),
        count(&seen.early),
    );
    let (orders, crashed, twice) = (
        count(&seen.orders),
        count(&seen.crashed),
        count(&seen.twice),
    );
    let _ = writeln!(
        io::stdout(),
        "requests {requests} orders {orders} crashed {crashed} twice {twice} comers {comers} longest {longest} ms lost {lost} refused {refused} early {early}"
    );
    if lost + refused == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn usage() -> ExitCode {
    let _ = writeln!(io::stderr(), "usage: load METHOD IDLE BUSY ADDRESS…");
    ExitCode::from(64)
}

impl Seen {
    fn connect(&self, address: &str) -> Option<Client> {
        match Client::connect(address) {
            Ok(client) => Some(client),
            Err(e) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let _ = writeln!(io::stderr(), "refused at {address}: {e}");
                None
            }
        }
    }

    /// Returns whether the client is still connected. If it was cut, it is counted as `cut`.
    fn ask(&self, client: &mut Client, number: u64, cut: &AtomicU64) -> bool {
        let begin = Instant::now();
        let answered = client.call(&self.method, number);
        if let Ok(mut longest) = self.longest.lock() {
            *longest = longest.max(begin.elapsed());
        }
        match answered {
            Ok(is_crashed) => {
                let counter = if is_crashed {
                    &self.twice
                } else {
                    &self.requests
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Err(ref e) => {
                let is_cut = matches!(
                    e.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
                );
                (if is_cut { cut } else { &self.lost }).fetch_add(1, Ordering::Relaxed);
                let _ = writeln!(io::stderr(), "request {number} failed: {e}");
            }
        }
        answered.is_ok()
    }

    fn keep_asking(&self, client: Option<Client>) {
        let Some(mut client) = client else { return };
        let (_nobody, news) = mpsc::channel::<()>();
        let mut number = 0;
        while !self.over.load(Ordering::Relaxed) && self.ask(&mut client, number, &self.lost) {
            number += 1;
            let _ = news.recv_timeout(REQUEST_INTERVAL);
        }
    }

    /// Sends orders, which are executed at most once. Their numbers begin at `first`.
    fn keep_ordering(&self, address: &str, first: u64) {
        let Some(mut client) = self.connect(address) else {
            return;
        };
        let mut number = first;
        while !self.over.load(Ordering::Relaxed) {
            let params = format!("{{\"number\":{number},\"ms\":2}}");
            let wanted = format!("{{\"out\":\"order_r\",\"result\":{number}}}");
            let counter = match client.exchange("order", &params) {
                Ok(reply) if reply == wanted => &self.orders,
                Ok(reply) if is_crashed(&reply) => &self.crashed,
                failed => {
                    let _ = writeln!(io::stderr(), "order {number} failed: {failed:?}");
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
            number += 1;
        }
    }

    fn come_and_go(&self, address: &str) {
        let (_nobody, news) = mpsc::channel::<()>();
        while !self.over.load(Ordering::Relaxed) {
            if let Some(mut client) = self.connect(address) {
                self.ask(&mut client, 7, &self.early);
                self.comers.fetch_add(1, Ordering::Relaxed);
            }
            let _ = news.recv_timeout(REQUEST_INTERVAL);
        }
    }
}

fn is_crashed(reply: &str) -> bool {
    reply.contains("\"code\":\"crashed\"")
}

/// A TCP or Unix socket: the calls used here are the same for both.
struct Client(UnixStream);

impl Client {
    fn connect(address: &str) -> io::Result<Client> {
        let stream = match address.strip_prefix("unix:") {
            Some(path) => UnixStream::connect(path)?,
            None => {
                let to: SocketAddr = address.parse().map_err(io::Error::other)?;
                UnixStream::from(OwnedFd::from(TcpStream::connect_timeout(&to, TIMEOUT)?))
            }
        };
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Client(stream))
    }

    /// Returns whether the reply is `crashed`.
    fn call(&mut self, method: &str, number: u64) -> io::Result<bool> {
        let reply = self.exchange(method, &number.to_string())?;
        let name = match method {
            "ping" => "pong".to_owned(),
            _ => format!("{method}_r"),
        };
        if reply == format!("{{\"out\":\"{name}\",\"result\":{number}}}") {
            Ok(false)
        } else if is_crashed(&reply) {
            Ok(true)
        } else {
            Err(io::Error::other(format!("the reply is {reply}")))
        }
    }

    fn exchange(&mut self, method: &str, params: &str) -> io::Result<String> {
        let body = format!("{{\"in\":\"{method}\",\"params\":{params}}}");
        let length = body.len() as u32;
        self.0
            .write_all(&[&length.to_le_bytes(), body.as_bytes()].concat())?;
        let mut prefix = [0; 4];
        self.0.read_exact(&mut prefix)?;
        let mut reply = vec![0; u32::from_le_bytes(prefix).min(1 << 20) as usize];
        self.0.read_exact(&mut reply)?;
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }
}
