//! The test of the benchmark, run by `cargo test --benches`: each scenario for a moment, and a check that wrong replies
//! are detected.

use std::time::Duration;

use crate::catalogue::{Places, Server};
use crate::common::failure::{Context, Result};
use crate::common::launch;
use crate::common::load::{Check, Load, Pace, Payload, Plan};
use crate::common::server::Running;
use crate::scenario::Scenario;
use crate::{idle, memory, models, scale, unpinned};

const MOMENT: Duration = Duration::from_millis(20);

/// Every scenario against each server of this program, an open loop, a load that must fail, few clients that move, and
/// the models.
pub(crate) fn test() -> Result<()> {
    launch::adopt_orphans()?;
    memory::raise_descriptor_limit()?;
    let places = Places {
        fdpassd: env!("CARGO_BIN_EXE_fdpassd").into(),
        baseline: None,
        peers: None,
    };
    for server in [Server::Echo, Server::Reuseport, Server::Floor] {
        let recipe = server.prepare(&places)?;
        let running = Running::start(server, &recipe)?;
        for scenario in Scenario::TIMED {
            scenario
                .measure(&running, MOMENT, MOMENT)
                .context(scenario.title())?;
        }
        open_loop(&running)?;
        counted(&running)?;
        if server.check() == Check::Echo {
            wrong_replies_are_detected(&running)?;
        }
        idle::measure(&running, 50, MOMENT)?;
        if server != Server::Echo {
            unpinned::measure(&running, MOMENT, MOMENT)?;
        }
        running.stop()?;
    }
    scale::test(&places.fdpassd)?;
    models::test(&places.fdpassd)
}

fn open_loop(running: &Running) -> Result<()> {
    for per_connection in [None, Some(3)] {
        let plan = Plan {
            connections: 4,
            depth: 2,
            per_connection,
            ..running.plan()
        };
        let report = Load::new(plan)?.run(Pace::Rate {
            per_second: 2000.0,
            time: 5 * MOMENT,
        })?;
        expect(report.requests, 200, "requests of the open loop")?;
        expect(report.errors, 0, "errors of the open loop")?;
    }
    Ok(())
}

/// 101 requests, seven to a connection: fourteen full connections and one of three, at least.
fn counted(running: &Running) -> Result<()> {
    let plan = Plan {
        connections: 4,
        per_connection: Some(7),
        payload: Payload::Kilo,
        ..running.plan()
    };
    let report = Load::new(plan)?.run(Pace::Requests(101))?;
    expect(report.requests, 101, "requests counted")?;
    expect(report.connections, 15, "connections counted")?;
    expect(report.errors, 0, "errors")
}

/// Checks that an echo is not accepted as a pong.
fn wrong_replies_are_detected(running: &Running) -> Result<()> {
    for check in [Check::Bytes, Check::Value] {
        let report = Load::new(Plan {
            check,
            ..running.plan()
        })?
        .run(Pace::Requests(10))?;
        expect(report.requests, 0, "echoes accepted as replies")?;
        expect(report.errors, 10, "wrong replies found")?;
    }
    Ok(())
}

fn expect(found: u64, wanted: u64, what: &str) -> Result<()> {
    if found == wanted {
        Ok(())
    } else {
        Err(format!("{what}: {found}, not {wanted}").into())
    }
}
