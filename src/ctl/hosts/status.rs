//! The status of several hosts: a row for each.

use std::io::{self, Write};
use std::ops::Add;

use serde_json::value::RawValue;

use super::Fleet;
use super::report::{conclude, state_of, write_error, write_json};
use crate::ctl::error::Error;
use crate::ctl::figures::{in_letters, rate, short};
use crate::ctl::session::parse;
use crate::ctl::style::{BAD, GOOD, NOTED};
use crate::ctl::table::{self, Cell, Columns, READABLE};
use crate::proto::control::{Status, Verb, WorkerState};
use crate::proto::text::Escaped;

/// The status, parsed unless only its JSON is wanted.
type HostStatus = (Box<RawValue>, Option<Box<Status>>);

/// Prints the status of all hosts.
pub(super) fn show(fleet: &Fleet<'_>, out: &mut impl Write) -> Result<(), Error> {
    let outcomes = fleet.on_all(|_, session| {
        let result = session.connect()?.ask(Verb::Status)?;
        let status = match session.json {
            true => None,
            false => Some(parse(&result)?),
        };
        Ok((result, status))
    });
    let hosts = fleet.names().zip(outcomes.iter().map(Some));
    let written = match fleet.session.json {
        true => write_json(out, hosts, |_, (result, _)| Ok(result.clone())),
        false => write_table(out, fleet, &outcomes),
    };
    written.map_err(Error::Output)?;
    conclude(outcomes.iter().map(Some))
}

fn write_table(
    out: &mut impl Write,
    fleet: &Fleet<'_>,
    outcomes: &[Result<HostStatus, Error>],
) -> io::Result<()> {
    let hosts = fleet.names().zip(outcomes);
    let rows: Vec<_> = hosts
        .clone()
        .map(|(host, outcome)| row(host, outcome))
        .collect();
    table::write(out, fleet.session.seen.paint(), COLUMNS, &rows)?;
    for (host, outcome) in hosts {
        match outcome {
            Ok((_, Some(status))) => write_notices(out, host, status)?,
            Ok((_, None)) => {}
            Err(error) => write_error(out, host, error)?,
        }
    }
    Ok(())
}

fn row(host: &str, outcome: &Result<HostStatus, Error>) -> [Cell; 10] {
    let mut cells = <[Cell; 10]>::default();
    cells[0] = Escaped(host).to_string().into();
    let status = match outcome {
        Ok((_, Some(status))) => status,
        Ok((_, None)) => return cells,
        Err(error) => {
            cells[1] = Cell::styled(state_of(error), BAD);
            return cells;
        }
    };
    let (state, style) = match status {
        status if status.stopping => ("stopping", NOTED),
        status if status.paused.is_some() => ("paused", NOTED),
        status if status.drain.is_some() => ("leaving", NOTED),
        status if status.reloading => ("reloading", NOTED),
        _ => ("serving", GOOD),
    };
    let workers = &status.workers;
    let is_ready = |state| state == WorkerState::Ready;
    let ready = workers
        .iter()
        .filter(|worker| is_ready(worker.state))
        .count();
    cells[1] = Cell::styled(state, style);
    cells[2] = Cell::foreign(&status.version, MAX_VERSION_LEN);
    cells[3] = in_letters(status.uptime_seconds).into();
    cells[4] = status.generation.to_string().into();
    cells[5] = format!("{ready}/{}", status.count).into();
    cells[6] = short(status.clients).into();
    // The numbers are another host's, and no sum of them may overflow.
    let executing = workers.iter().map(|worker| worker.executing);
    cells[7] = short(executing.fold(0, u64::saturating_add)).into();
    let rates = workers
        .iter()
        .filter_map(|worker| worker.requests_per_second);
    // `sum` of no numbers is -0.
    cells[8] = rate(rates.fold(0.0, f64::add)).into();
    cells[9] = short(status.deaths_total).into();
    cells
}

/// Writes the unusual states of a host, for which its row has no room.
fn write_notices(out: &mut impl Write, host: &str, status: &Status) -> io::Result<()> {
    let with = |prefix: &str, why: &str| format!("{prefix}: {why}");
    let paused = status.paused.iter().map(|why| with("no new clients", why));
    let stale = status.config_stale.iter();
    let stale = stale.map(|why| with("the previous configuration is in force", why));
    let store = status.store_outage.iter();
    let store = store.map(|why| with("a restart would lose all clients", why));
    let methods = &status.quarantined;
    let quarantined = (!methods.is_empty()).then(|| with("quarantined", &methods.join(", ")));
    let missing = status.missing.iter().cloned();
    let mut notices = paused
        .chain(stale)
        .chain(missing)
        .chain(store)
        .chain(quarantined);
    notices.try_for_each(|notice| writeln!(out, "{}: {}", Escaped(host), Escaped(notice)))
}

const COLUMNS: Columns<10> = Columns {
    header: [
        "HOST", "STATE", "VERSION", "UPTIME", "GEN", "WORKERS", "CLIENTS", "EXEC", "REQ/S",
        "DEATHS",
    ],
    words: &[0, 1, 2],
    gives_way: &[(2, READABLE), (0, READABLE)],
    goes: &[4],
    optional: None,
};

/// The longest version that is shown in full.
const MAX_VERSION_LEN: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::style::Paint;
    use crate::ctl::tests::status;
    use crate::proto::control::{DrainMode, DrainStatus};

    #[test]
    fn a_host_is_a_row_and_its_notices_are_below() {
        let outcome = |status: Status| {
            let raw = serde_json::value::to_raw_value(&status).expect("JSON");
            Ok((raw, Some(Box::new(status))))
        };
        let mut paused = status();
        paused.paused = Some("drained".to_owned());
        paused.quarantined = vec!["resize".to_owned(), "x\x1b".to_owned()];
        for worker in &mut paused.workers {
            (worker.executing, worker.requests_per_second) = (u64::MAX, None);
        }
        let mut leaving = status();
        leaving.drain = Some(DrainStatus {
            mode: DrainMode::Refuse,
            notice: Some(7.2),
            over: None,
        });
        let mut notices = Vec::new();
        write_notices(&mut notices, "b", &paused).expect("a Vec takes everything");
        let expected = "b: no new clients: drained\nb: quarantined: resize, x\\x1b\n";
        assert_eq!(String::from_utf8_lossy(&notices), expected);
        let down = Err(Error::Unreachable("no route".to_owned()));
        let rows = [
            row("web1", &outcome(status())),
            row("b", &outcome(paused)),
            row("d", &outcome(leaving)),
            row("c", &down),
        ];
        let mut shown = Vec::new();
        table::write(&mut shown, Paint::default(), COLUMNS, &rows).expect("a Vec takes everything");
        let expected = "\
HOST STATE       VERSION UPTIME GEN WORKERS CLIENTS   EXEC REQ/S DEATHS
web1 serving     0.1.0     3d4h   3     1/3   1,234      4  1.2k      0
b    paused      0.1.0     3d4h   3     1/3   1,234 18447P     0      0
d    leaving     0.1.0     3d4h   3     1/3   1,234      4  1.2k      0
c    unreachable
";
        assert_eq!(String::from_utf8_lossy(&shown), expected);
    }
}
