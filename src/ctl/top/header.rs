//! The lines about the whole daemon, which every view has.

use anstyle::Style;
use ratatui_core::text::{Line, Span};

use super::state::Top;
use super::text::{fact, fact_within, foreign, styled};
use crate::ctl::figures::{grouped, in_letters, in_words, rate, time};
use crate::ctl::status::{Notice, notices};
use crate::ctl::style::BAD;
use crate::ctl::table::shortened;
use crate::proto::control::{ListenerStatus, Status, WorkerState, WorkerStatus};
use crate::proto::text::Escaped;

/// Returns the name of the daemon, and whether it answers.
pub(super) fn title(top: &Top) -> Line<'static> {
    let status = &top.status;
    let (name, version) = (Escaped(&status.name), Escaped(&status.version));
    let title = format!(
        "{name} {version}, pid {}, up {}, generation {}",
        status.pid,
        in_words(status.uptime_seconds),
        status.generation
    );
    match &top.outage {
        None => styled(title, Style::new().bold()),
        Some(why) => Line::from(vec![
            Span::styled("NO ANSWER ", BAD),
            Span::raw(Escaped(why).to_string()),
        ]),
    }
}

/// Returns what is unusual: at most `most` lines.
pub(super) fn unusual(top: &Top, most: usize) -> Vec<Line<'static>> {
    let all = notices(&top.status);
    // On one line, the first one with the number of others.
    if most == 1
        && let [first, others @ ..] = all.as_slice()
        && !others.is_empty()
    {
        let text = format!("(+{}) {}", others.len(), first.text);
        return vec![foreign(first.word, first.style, &text)];
    }
    let shown = match all.len() > most {
        true => most.saturating_sub(1),
        false => all.len(),
    };
    let line = |notice: &Notice| foreign(notice.word, notice.style, &notice.text);
    let mut lines: Vec<Line<'static>> = all.iter().take(shown).map(line).collect();
    if shown < all.len() && most > 0 {
        let more = format!("{} more; \"status\" shows all", all.len() - shown);
        lines.push(fact("…", &more));
    }
    lines
}

/// Returns the lines of figures, the most important first, as much of each as fits this width.
pub(super) fn figures(top: &Top, width: usize) -> Vec<Line<'static>> {
    let status = &top.status;
    let figures = [
        ("requests", requests(top)),
        ("workers", workers(status)),
        ("clients", clients(top)),
        ("queue", queue(&status.listeners)),
    ];
    let within = |(word, text): (&str, String)| fact_within(word, &text, width);
    figures.into_iter().map(within).collect()
}

fn requests(top: &Top) -> String {
    let workers = &top.status.workers;
    let executing = workers.iter().map(|worker| worker.executing).sum();
    let waiting = workers.iter().map(|worker| worker.waiting).sum();
    let figures = [
        top.history
            .requests()
            .map(|requests| format!("{}/s", rate(requests))),
        range(workers, |worker| worker.p50_seconds).map(|p50| format!("p50 {p50}")),
        range(workers, |worker| worker.p99_seconds).map(|p99| format!("p99 {p99}")),
        top.history
            .errors()
            .map(|errors| format!("errors {}/s", rate(errors))),
        Some(format!("{} executing", grouped(executing))),
        Some(waiting)
            .filter(|waiting| *waiting > 0)
            .map(|waiting: u64| format!("{} waiting", grouped(waiting))),
    ];
    figures.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Returns the lowest and the highest time of the workers. The percentile of all requests together is between them.
fn range(
    workers: &[WorkerStatus],
    seconds: impl Fn(&WorkerStatus) -> Option<f64>,
) -> Option<String> {
    let times: Vec<f64> = workers.iter().filter_map(seconds).collect();
    let lowest = times.iter().copied().min_by(f64::total_cmp)?;
    let highest = times.iter().copied().max_by(f64::total_cmp)?;
    let (lowest, highest) = (time(lowest), time(highest));
    Some(match lowest == highest {
        true => lowest,
        false => format!("{lowest} to {highest}"),
    })
}

fn workers(status: &Status) -> String {
    let is_ready = |worker: &&WorkerStatus| worker.state == WorkerState::Ready;
    let ready = status.workers.iter().filter(is_ready).count();
    let leaving = match status.leaving.len() {
        0 => String::new(),
        leaving => format!(", {leaving} leaving"),
    };
    let mut text = format!(
        "{ready} of {} ready{leaving}; deaths {}, stalls {}",
        status.count,
        grouped(status.deaths_total),
        grouped(status.stalls_total)
    );
    let memory = status.workers.iter().filter_map(|worker| worker.rss_bytes);
    let memory: u64 = memory.sum();
    if memory > 0 {
        text += &format!("; memory {} MiB", grouped(memory >> 20));
    }
    text
}

fn clients(top: &Top) -> String {
    let status = &top.status;
    let [clients, most] = [status.clients, status.max_clients].map(grouped);
    let history = &top.history;
    let rates = [("new", history.accepted()), ("moved", history.moved())];
    let rates = rates
        .iter()
        .filter_map(|(word, speed)| speed.map(|speed| format!("{word} {}/s", rate(speed))));
    let rates = rates.collect::<Vec<_>>().join(", ");
    let separator = if rates.is_empty() { "" } else { "; " };
    format!(
        "{clients} of {most}{separator}{rates}; refused {}, lost {}",
        grouped(status.refused_total),
        grouped(status.lost_total)
    )
}

/// Returns the accept queues, the fullest first.
fn queue(listeners: &[ListenerStatus]) -> String {
    let mut queues: Vec<(u32, String)> = listeners.iter().filter_map(queue_of).collect();
    queues.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    let queues: Vec<String> = queues.into_iter().map(|(_, text)| text).collect();
    match queues.is_empty() {
        true => "not known of Unix sockets".to_owned(),
        false => queues.join(", "),
    }
}

/// Returns the queue of a listener; a listener where clients cannot connect comes before all others. A notice has the
/// reason.
fn queue_of(listener: &ListenerStatus) -> Option<(u32, String)> {
    let address = Escaped(&listener.address).to_string();
    let address = shortened(&address, MAX_ADDRESS_LEN);
    match (&listener.outage, listener.queue, listener.queue_max) {
        (Some(_), ..) => Some((u32::MAX, format!("{address} DOWN"))),
        (None, Some(length), Some(most)) => Some((length, format!("{address} {length}/{most}"))),
        (None, ..) => None,
    }
}

/// Returns `every 1s`.
pub(super) fn pace(top: &Top) -> String {
    match top.interval.as_secs_f64() {
        seconds if seconds.fract() == 0.0 => format!("every {}", in_letters(seconds)),
        seconds => format!("every {seconds}s"),
    }
}

/// The longest address of a listener that is shown in full.
const MAX_ADDRESS_LEN: usize = 30;
