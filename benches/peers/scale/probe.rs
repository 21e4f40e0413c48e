//! Two clients that measure how long they wait: a busy one, and one that makes a new connection for each request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::daemon::Cgroup;
use crate::common::failure::{Context, Result};

/// The pause before the next request.
const PAUSE: Duration = Duration::from_millis(1);

/// A reply must come after this time.
const TIMEOUT: Duration = Duration::from_secs(30);

const REQUEST: &[u8] = b"{\"in\":\"ping\"}";
const REPLY: &[u8] = b"{\"out\":\"pong\",\"result\":null}";

/// The longest wait of a client.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wait {
    pub(crate) time: Duration,
    /// The CPU time that the daemon has used in the wait that lasted longest by this clock.
    pub(crate) used: Option<Duration>,
}

/// The running clients.
pub(crate) struct Probes {
    is_over: Arc<AtomicBool>,
    busy: JoinHandle<std::result::Result<Wait, String>>,
    new: JoinHandle<std::result::Result<Wait, String>>,
}

impl Probes {
    /// Starts both clients.
    pub(crate) fn start(to: SocketAddr, clock: Option<Arc<Cgroup>>) -> Result<Probes> {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut kept = connect(to)?;
        ask(&mut kept)?;
        let begin = |mut exchange: Box<dyn FnMut() -> Result<()> + Send>| {
            let (is_over, clock) = (Arc::clone(&is_over), clock.clone());
            thread::spawn(move || {
                longest(&is_over, clock.as_deref(), &mut exchange).map_err(|e| e.to_string())
            })
        };
        let busy = begin(Box::new(move || ask(&mut kept)));
        let new = begin(Box::new(move || ask(&mut connect(to)?)));
        Ok(Probes { is_over, busy, new })
    }

    /// Ends both, and returns the longest waits of the busy client and of the new ones.
    pub(crate) fn stop(self) -> Result<[Wait; 2]> {
        self.is_over.store(true, Ordering::Relaxed);
        let busy = self.busy.join().map_err(|_| "the busy client panicked")?;
        let new = self.new.join().map_err(|_| "the new client panicked")?;
        Ok([
            busy.context("the busy client")?,
            new.context("a new client")?,
        ])
    }
}

fn longest(
    is_over: &AtomicBool,
    clock: Option<&Cgroup>,
    exchange: &mut dyn FnMut() -> Result<()>,
) -> Result<Wait> {
    let used = || clock.and_then(Cgroup::now);
    let mut longest = Wait::default();
    while !is_over.load(Ordering::Relaxed) {
        let (before, begin) = (used(), Instant::now());
        exchange()?;
        longest.time = longest.time.max(begin.elapsed());
        let took = used()
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before));
        longest.used = longest.used.max(took);
        thread::sleep(PAUSE);
    }
    Ok(longest)
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let client = TcpStream::connect(to).context("cannot connect")?;
    client
        .set_read_timeout(Some(TIMEOUT))
        .context("cannot set a timeout")?;
    Ok(client)
}

fn ask(client: &mut TcpStream) -> Result<()> {
    let frame = [&(REQUEST.len() as u32).to_le_bytes(), REQUEST].concat();
    client.write_all(&frame).context("cannot write")?;
    let mut reply = [0; 4 + REPLY.len()];
    client.read_exact(&mut reply).context("no reply")?;
    if reply[4..] != *REPLY {
        return Err(format!("a wrong reply: {}", String::from_utf8_lossy(&reply)).into());
    }
    Ok(())
}
