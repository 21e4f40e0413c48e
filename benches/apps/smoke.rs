//! The test of the benchmark, run by `cargo test --benches`: each scenario for a moment against fdpassd without an app,
//! with one in Python, and against the servers that need no more than Python.

use std::path::PathBuf;
use std::time::Duration;

use crate::catalogue::{Places, Server, built};
use crate::common::failure::{Context, Result};
use crate::common::launch;
use crate::common::recipe::installed;
use crate::common::rounds::progress;
use crate::common::server::Running;
use crate::scenario::Scenario;

const MOMENT: Duration = Duration::from_millis(20);

pub(crate) fn test() -> Result<()> {
    launch::adopt_orphans()?;
    let places = Places {
        fdpassd: PathBuf::from(env!("CARGO_BIN_EXE_fdpassd")),
        venv: built().join("venv"),
    };
    for server in [
        Server::Native,
        Server::PyJson,
        Server::AsyncJson,
        Server::Asyncio,
        Server::AsyncioTasks,
        Server::Relay,
        Server::PyRelay,
    ] {
        if !matches!(server, Server::Native | Server::Relay)
            && let Err(why) = installed("python3", "--version")
        {
            progress(&format!("{}: skipped: {why}", server.title()))?;
            continue;
        }
        let running = Running::start(server, &server.prepare(&places)?)?;
        for scenario in Scenario::ALL {
            scenario
                .measure(&running, MOMENT, MOMENT)
                .context(scenario.title())?;
        }
        running.stop()?;
    }
    Ok(())
}
