//! The goals of the scenario.

use super::moves::{Client, Event};
use super::{BuildResults, Case};
use crate::common::grid::row;
use crate::common::spread::Spread;

/// The numbers of workers that goals are about.
const FEW: usize = 2;
const MANY: usize = 64;

/// The most CPU time of the master for a connection with many workers, as a multiple of that with few.
const MASTER: f64 = 1.15;

/// The longest wait of a client during an event with this number of workers, in milliseconds.
const WAITS: [(Event, usize, Client, f64); 3] = [
    (Event::Reload, FEW, Client::Busy, 30.0),
    (Event::Reload, MANY, Client::New, 60.0),
    (Event::Upgrade, MANY, Client::New, 100.0),
];

/// Returns the table of the goals, with what each build reached.
pub(super) fn rows(builds: &[&str], results: &[BuildResults]) -> Vec<Vec<String>> {
    let titles = builds.iter().map(|title| (*title).to_owned());
    let head = std::iter::once("goal".to_owned()).chain(titles);
    let mut rows = vec![row("scenario", head)];
    let cases = |workers: usize| results.iter().find(|all| all.workers == workers);
    for (event, workers, client, most) in WAITS {
        let waits = |case: &Case| {
            let of_event = case.moved.iter().filter(|(other, _)| *other == event);
            Spread::of(of_event.map(|(_, moved)| moved.wait(client)).collect())
        };
        let cells = builds.iter().enumerate().map(|(build, _)| {
            let case = cases(workers).map(|all| &all.cases[build]);
            verdict(case.and_then(waits), most, 1)
        });
        let title = format!(
            "{workers} workers, {}: the longest wait of a {}",
            event.title(),
            client.title()
        );
        let goal = format!("at most {most:.0} ms");
        rows.push(row(&title, std::iter::once(goal).chain(cells)));
    }
    let cells = builds.iter().enumerate().map(|(build, _)| {
        let [few, many] = [FEW, MANY].map(|workers| cases(workers).map(|all| &all.cases[build]));
        verdict(few.zip(many).and_then(master_ratio), MASTER, 2)
    });
    let title = format!("the master's CPU time for a connection, {MANY} workers against {FEW}");
    let goal = format!("at most {MASTER:.2} x");
    rows.push(row(&title, std::iter::once(goal).chain(cells)));
    rows
}

/// Returns the ratio of the master's CPU time for a connection, computed in each round.
fn master_ratio((few, many): (&Case, &Case)) -> Option<Spread> {
    let rounds = few.steady.iter().zip(&many.steady);
    Spread::of(
        rounds
            .map(|(few, many)| many.master() / few.master())
            .collect(),
    )
}

/// Returns a value with its quartiles, and whether it is within the goal.
fn verdict(value: Option<Spread>, most: f64, digits: usize) -> String {
    let Some(Spread {
        median, quartiles, ..
    }) = value
    else {
        return "not measured".to_owned();
    };
    let [low, high] = quartiles;
    let word = if median <= most { "met" } else { "MISSED" };
    format!("{median:.digits$} ({low:.digits$}-{high:.digits$}): {word}")
}
