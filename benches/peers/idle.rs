//! The memory of a connected, silent client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::cpu::Reading;
use crate::common::failure::{Context, Result};
use crate::common::interrupt;
use crate::common::load::{Load, Pace, Plan};
use crate::common::server::Running;
use crate::memory::Memory;
use crate::scenario::Scenario;

/// A reply must come after this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes for each client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerClient {
    /// Mapped memory.
    pub(crate) pss: f64,
    /// Pages of memfds, mapped or not.
    pub(crate) memfds: f64,
}

/// Warms up a server that was just started, connects the clients and looks at the difference. Each client asks once
/// before it falls silent, so that the server has it for certain, with all that it makes at the first request.
pub(crate) fn measure(running: &Running, clients: usize, warm_up: Duration) -> Result<PerClient> {
    Load::new(Scenario::Ping.plan(running))?.run(Pace::Time(warm_up))?;
    Reading::when_idle(running.pid())?;
    let before = Memory::now(running.pid())?;
    let plan = running.plan();
    let silent = (0..clients)
        .map(|n| ask_once(&plan).context(format!("client {n}")))
        .collect::<Result<Vec<_>>>()?;
    Reading::when_idle(running.pid())?;
    let after = Memory::now(running.pid())?;
    drop(silent);
    let each = |after: i64, before: i64| (after - before) as f64 / clients as f64;
    Ok(PerClient {
        pss: each(after.pss, before.pss),
        memfds: each(after.memfds, before.memfds),
    })
}

fn ask_once(plan: &Plan) -> Result<TcpStream> {
    interrupt::check()?;
    let (request, reply) = plan.first_exchange()?;
    let mut client = TcpStream::connect(plan.to).context("cannot connect")?;
    client
        .set_read_timeout(Some(TIMEOUT))
        .context("cannot set a timeout")?;
    client.write_all(&request).context("cannot write")?;
    let mut answer = vec![0; reply.len()];
    client.read_exact(&mut answer).context("no reply")?;
    if answer == reply {
        Ok(client)
    } else {
        Err("a wrong reply".into())
    }
}
