//! The figures of the clients and of the listeners.

use super::text::{COUNTER, GAUGE, MetricsText};
use crate::master::control::Snapshot;
use crate::proto::control::{ListenerStatus, Pause, Status};
use crate::shm::CloseReason;
use crate::sys::socket;

/// Whether clients can connect to a listener: the only figure of which two make no sum.
const UP: &str = "listener_up";

/// A figure of a listener; `None` if it is not known.
type ListenerFigure = fn(&ListenerStatus) -> Option<u64>;

pub(super) fn write_clients(text: &mut MetricsText, master: &Snapshot<'_>, status: &Status) {
    text.family(
        "clients",
        GAUGE,
        "Connected clients: leased to a worker, or waiting for one.",
    );
    let without_worker = master.clients.count_without_worker() as u64;
    text.sample(
        "clients",
        &[("state", &"leased")],
        master.clients.count().saturating_sub(without_worker),
    );
    text.sample("clients", &[("state", &"waiting")], without_worker);
    text.gauge(
        "clients_max",
        "The most clients that may be connected.",
        master.clients.max,
    );
    text.counter(
        "clients_accepted_total",
        "Clients that were accepted.",
        master.clients.accepted(),
    );
    text.family(
        "clients_rejected_total",
        COUNTER,
        "Of those, clients that were rejected at once.",
    );
    text.sample(
        "clients_rejected_total",
        &[("reason", &"per_address")],
        master.telemetry.counts.refused,
    );
    let help = "Connections to listeners with the key proxy that ended without becoming clients, by reason.";
    let without_client = &master.telemetry.counts.without_client;
    text.by(
        "proxy_connections_without_client_total",
        help,
        "reason",
        without_client,
    );
    write_losses(text, master);
    if let Some(skew) = status.skew {
        text.gauge(
            "client_skew_ratio",
            "Most clients of a ready worker, divided by the mean.",
            skew.clients,
        );
        if let Some(busy) = skew.busy {
            text.gauge(
                "load_skew_ratio",
                "Highest busy ratio of a ready worker, divided by the mean.",
                busy,
            );
        }
    }
}

fn write_losses(text: &mut MetricsText, master: &Snapshot<'_>) {
    let (counts, lost) = (
        &master.telemetry.counts,
        master.telemetry.counts.lost(master.workers.totals().lost),
    );
    let mut closed = counts.closed.clone();
    closed.add(CloseReason::Lost, lost.total());
    let help = "Clients that are not connected any more, by reason.";
    text.by("clients_closed_total", help, "reason", &closed);
    for (reason, count) in [
        ("crashes", counts.closed_for_crashes),
        ("kicked", counts.kicked),
    ] {
        text.sample("clients_closed_total", &[("reason", &reason)], count);
    }
    let help = "Clients that the daemon closed for a reason of its own, by reason.";
    text.by("clients_lost_total", help, "reason", &lost);
    text.by(
        "moves_total",
        "Clients that moved to another worker, by reason.",
        "reason",
        &master.telemetry.counts.moves,
    );
    let help =
        "Clients that moved to another worker because theirs died, by the cause of its death.";
    text.by(
        "rescues_total",
        help,
        "cause",
        &master.telemetry.counts.rescues,
    );
}

/// Writes whether clients are accepted, and why not.
fn write_accepting(text: &mut MetricsText, master: &Snapshot<'_>, status: &Status) {
    text.gauge(
        "accepting",
        "Whether new clients are being accepted.",
        u8::from(master.listeners.gate.pause.is_none()),
    );
    text.gauge(
        "draining",
        "Whether an operator has begun a drain, its notice included.",
        u8::from(status.drain.is_some()),
    );
    text.family(
        "paused",
        GAUGE,
        "Whether no client is accepted for this reason.",
    );
    for pause in Pause::ALL {
        let is_reason = master.listeners.gate.pause == Some(pause);
        let reason = pause.as_str();
        text.sample("paused", &[("reason", &reason)], u8::from(is_reason));
    }
}

pub(super) fn write_listeners(text: &mut MetricsText, master: &Snapshot<'_>, status: &Status) {
    write_accepting(text, master, status);
    let each: [(&str, &str, &str, ListenerFigure); 4] = [
        (
            UP,
            GAUGE,
            "Whether clients can connect to the listener.",
            |l| Some((l.outage.is_none() && !l.refuses).into()),
        ),
        (
            "listener_accepted_total",
            COUNTER,
            "Clients accepted at the listener.",
            |l| Some(l.accepted_total),
        ),
        (
            "listen_queue",
            GAUGE,
            "Clients waiting in the kernel.",
            |l| l.queue.map(u64::from),
        ),
        (
            "listen_queue_max",
            GAUGE,
            "Clients that can wait there.",
            |l| l.queue_max.map(u64::from),
        ),
    ];
    for (name, kind, help, figure) in each {
        text.family(name, kind, help);
        for (index, listener) in status.listeners.iter().enumerate() {
            // The second one of an address is about to close: clients find the first one.
            let is_same = |other: &&ListenerStatus| other.address == listener.address;
            if status.listeners[..index]
                .iter()
                .any(|other| is_same(&other))
            {
                continue;
            }
            let all = status.listeners.iter().filter(is_same);
            let value = if name == UP {
                figure(listener)
            } else {
                all.filter_map(figure).reduce(u64::saturating_add)
            };
            if let Some(value) = value {
                text.sample(name, &[("listener", &listener.address)], value);
            }
        }
    }
    if let Some(overflows) = socket::listen_overflows() {
        let help = "Connections that the kernel dropped because a queue was full, of all listeners of this network namespace.";
        text.counter("listen_overflows_total", help, overflows);
    }
}
