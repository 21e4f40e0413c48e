//! Clients that measure a server from outside.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::instance::Instance;
use super::{Model, WORKERS};
use crate::common::failure::{Context, Result};

/// Clients that send half a frame, and then nothing.
pub(super) const SLOW: usize = 4;

/// Connections that stay.
pub(super) const LONG: usize = 64;

/// Connections of one request, and how many of them there are at a time.
const SHORT: usize = 1000;
const THREADS: usize = 20;

/// Connections whose waits are measured.
const WAITS: usize = 50;

/// A client that gets no reply within this time is not served.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that waits for each reply.
struct Client(TcpStream);

impl Client {
    fn connect(to: SocketAddrV4) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&to.into(), TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Client(stream))
    }

    /// Calls a method, and returns its result.
    fn call(&mut self, method: &str) -> io::Result<u32> {
        let body = format!("{{\"in\":\"{method}\",\"params\":0}}");
        let prefix = (body.len() as u32).to_le_bytes();
        self.0.write_all(&[&prefix[..], body.as_bytes()].concat())?;
        let mut prefix = [0; 4];
        self.0.read_exact(&mut prefix)?;
        let mut reply = vec![0; u32::from_le_bytes(prefix) as usize];
        self.0.read_exact(&mut reply)?;
        let reply = String::from_utf8_lossy(&reply);
        let result = reply.strip_prefix("{\"out\":\"pong\",\"result\":");
        let result = result.and_then(|rest| rest.strip_suffix('}')?.parse().ok());
        result.ok_or_else(|| io::Error::other(reply.into_owned()))
    }
}

/// Returns the longest wait in ms of clients that come one by one while `slow` other clients are connected. `None` if a
/// client is not served.
pub(super) fn longest_wait(instance: &Instance, slow: usize) -> Result<Option<f64>> {
    let mut waiting = Vec::new();
    for _ in 0..slow {
        let mut client = Client::connect(instance.address()).context("a slow client")?;
        client
            .0
            .write_all(&[40, 0, 0, 0, b'{'])
            .context("half a frame")?;
        waiting.push(client);
    }
    let mut longest = Duration::ZERO;
    for _ in 0..WAITS {
        let begin = Instant::now();
        let served = Client::connect(instance.address()).and_then(|mut client| client.call("ping"));
        if served.is_err() {
            return Ok(None);
        }
        longest = longest.max(begin.elapsed());
    }
    Ok(Some(longest.as_secs_f64() * 1e3))
}

/// Returns the most of these numbers, one for each worker, divided by their mean.
fn share(counts: impl IntoIterator<Item = usize>) -> f64 {
    let counts: Vec<usize> = counts.into_iter().collect();
    let most = counts.iter().copied().max().unwrap_or_default();
    let sum: usize = counts.iter().sum();
    (most * WORKERS) as f64 / sum.max(1) as f64
}

/// Returns the share of the worker with the most of [`LONG`] connections, which come one after another and stay.
pub(super) fn share_of_long(instance: &Instance) -> Result<f64> {
    let (clients, pids) = open_long(instance)?;
    let counts: Vec<usize> = match instance.fdpassd() {
        Some(daemon) => {
            let workers = daemon.status().workers;
            workers
                .iter()
                .map(|worker| worker.clients as usize)
                .collect()
        }
        None => by_pid(&pids),
    };
    drop(clients);
    Ok(share(counts))
}

/// Opens [`LONG`] connections. Returns the processes that serve them as well; those of fdpassd are not known by that.
fn open_long(instance: &Instance) -> Result<(Vec<Client>, Vec<u32>)> {
    let method = method(instance);
    let open = |_| {
        let mut client = Client::connect(instance.address())?;
        let result = client.call(method)?;
        Ok((client, result))
    };
    let opened: io::Result<Vec<_>> = (0..LONG).map(open).collect();
    Ok(opened
        .context("a connection that stays")?
        .into_iter()
        .unzip())
}

/// Returns the method that shows who has answered: fdpassd has none, but its status.
fn method(instance: &Instance) -> &'static str {
    match instance.fdpassd() {
        Some(_) => "ping",
        None => "pid",
    }
}

fn by_pid(pids: &[u32]) -> Vec<usize> {
    let mut counts = BTreeMap::new();
    for pid in pids {
        *counts.entry(pid).or_default() += 1;
    }
    counts.into_values().collect()
}

/// Returns the share of the worker with the most of [`SHORT`] connections of one request.
pub(super) fn share_of_short(instance: &Instance) -> Result<f64> {
    let (address, method) = (instance.address(), method(instance));
    let ask = || -> io::Result<Vec<u32>> {
        (0..SHORT / THREADS)
            .map(|_| Client::connect(address)?.call(method))
            .collect()
    };
    let served: Vec<_> = thread::scope(|threads| {
        let asking: Vec<_> = (0..THREADS).map(|_| threads.spawn(ask)).collect();
        asking.into_iter().map(|thread| thread.join()).collect()
    });
    let mut pids = Vec::new();
    for served in served {
        let served = served.map_err(|_| "a client panicked")?;
        pids.extend(served.context("a short connection")?);
    }
    Ok(match instance.fdpassd() {
        Some(daemon) => {
            let workers = daemon.status().workers;
            share(workers.iter().map(|worker| worker.requests_total as usize))
        }
        None => share(by_pid(&pids)),
    })
}

/// Kills the worker with the most connections. Returns how many of [`LONG`] connections end with it, and whether a new one is served then; `None`
/// if the server has only one process.
pub(super) fn kill(instance: Instance) -> Result<(Option<usize>, bool)> {
    if instance.model == Model::Iterative {
        let pid = Client::connect(instance.address()).and_then(|mut client| client.call("pid"));
        instance.kill(pid.context("the only process")?)?;
        return Ok((None, serves(&instance)));
    }
    let (mut clients, pids) = open_long(&instance)?;
    let worker = match instance.fdpassd() {
        Some(daemon) => daemon.worker_pids().first().copied(),
        None => busiest(&pids),
    };
    instance.kill(worker.context("no worker")?)?;
    let lost = clients
        .iter_mut()
        .filter_map(|client| client.call("ping").err());
    let lost = lost.count();
    Ok((Some(lost), serves(&instance)))
}

/// Returns the process that serves the most of these connections.
fn busiest(pids: &[u32]) -> Option<u32> {
    let count = |wanted: u32| pids.iter().filter(|pid| **pid == wanted).count();
    pids.iter().copied().max_by_key(|pid| count(*pid))
}

fn serves(instance: &Instance) -> bool {
    let served = Client::connect(instance.address()).and_then(|mut client| client.call("ping"));
    served.is_ok()
}
