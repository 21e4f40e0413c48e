//! The latency of other clients while one repeatedly calls a method that blocks its worker.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::catalogue::Server;
use crate::common::failure::{Context, Result};
use crate::common::load::{Load, Pace, Plan, Report};
use crate::common::server::Running;
use crate::common::window::faultless;

/// How long each of its calls blocks.
pub(crate) const BLOCK: Duration = Duration::from_millis(100);

/// The number of pinging clients.
pub(crate) const CLIENTS: usize = 50;

/// Pings a second, of all together, whether or not those before are answered: far less than either server can do.
const RATE: f64 = 2_000.0;

/// A call must have come back after this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Latencies, in microseconds: 99 of 100 pings took no longer, and the slowest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) p99: f64,
    pub(crate) slowest: f64,
}

/// The same clients, without that one and then with it.
pub(crate) fn measure(
    running: &Running,
    warm_up: Duration,
    window: Duration,
) -> Result<[Latency; 2]> {
    let mut load = Load::new(Plan {
        connections: CLIENTS,
        ..running.plan()
    })?;
    faultless(load.run(Pace::Time(warm_up))?)?;
    let pace = Pace::Rate {
        per_second: RATE,
        time: window,
    };
    let calm = faultless(load.run(pace)?)?;
    let mut caller = Caller::connect(running.address)?;
    let params = caller.calibrate(running.server)?;
    let is_over = AtomicBool::new(false);
    let (stalled, called) = thread::scope(|threads| {
        let calling = threads.spawn(|| -> std::result::Result<(), String> {
            while !is_over.load(Ordering::Relaxed) {
                caller
                    .call(params)
                    .map_err(|why| format!("the caller: {why}"))?;
            }
            Ok(())
        });
        let stalled = load.run(pace);
        is_over.store(true, Ordering::Relaxed);
        (stalled, calling.join())
    });
    called.map_err(|_| "the caller panicked")??;
    Ok([latency(&calm), latency(&faultless(stalled?)?)])
}

fn latency(report: &Report) -> Latency {
    let micros = |latency: Duration| latency.as_secs_f64() * 1e6;
    Latency {
        p99: micros(report.latencies.quantile(0.99)),
        slowest: micros(report.latencies.max()),
    }
}

/// The client that blocks its worker.
struct Caller(TcpStream);

impl Caller {
    fn connect(to: SocketAddrV4) -> Result<Caller> {
        let stream = TcpStream::connect(to).context("cannot connect")?;
        stream
            .set_read_timeout(Some(TIMEOUT))
            .context("cannot set a timeout")?;
        Ok(Caller(stream))
    }

    /// Returns the argument with which `pi` takes that long: Node's is a time, fdpassd's a number of terms.
    fn calibrate(&mut self, server: Server) -> Result<u64> {
        if server == Server::Node {
            return u64::try_from(BLOCK.as_millis()).context("a time");
        }
        let mut terms = 1 << 20;
        loop {
            let took = self.call(terms)?;
            if took >= BLOCK / 5 {
                return Ok((terms as f64 * BLOCK.as_secs_f64() / took.as_secs_f64()) as u64);
            }
            terms *= 2;
        }
    }

    /// Calls and waits; how long it took.
    fn call(&mut self, params: u64) -> Result<Duration> {
        let begin = Instant::now();
        let body = format!("{{\"in\":\"pi\",\"params\":{params}}}");
        let prefix = (body.len() as u32).to_le_bytes();
        let frame = [&prefix[..], body.as_bytes()].concat();
        self.0.write_all(&frame).context("cannot write")?;
        let mut prefix = [0; 4];
        self.0.read_exact(&mut prefix).context("no reply")?;
        let mut reply = vec![0; u32::from_le_bytes(prefix) as usize];
        self.0.read_exact(&mut reply).context("no reply")?;
        if reply.starts_with(b"{\"out\":\"error\"") {
            return Err(format!("pi: {}", String::from_utf8_lossy(&reply)).into());
        }
        Ok(begin.elapsed())
    }
}
