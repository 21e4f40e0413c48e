//! The reply to the agent check of a load balancer: one line of HAProxy's `agent-check`.
//!
//! The reply never has `ready`, `drain` or `maint`: only `ready` ends `drain` and `maint`, and it would also end a drain
//! that an operator of the balancer has begun. `up 0%` has the same effect, and the next percentage ends it. The balancer
//! ignores a line without a newline.

use super::serving::{has_worker, unhealthy};
use crate::proto::control::{Pause, Status, WorkerState};

/// The weight of a daemon whose workers are always busy, in percent. 0 would mean that no client is wanted.
const MIN_WEIGHT: f64 = 10.0;

/// The weight changes in steps of this many percent.
const STEP: f64 = 10.0;

/// Returns the line for a daemon in this state.
pub(super) fn line(status: &Status) -> String {
    let no_weight = |reason: &str| format!("up 0% #{reason}\n");
    match status {
        Status {
            stopping: true,
            pause: Some(Pause::Restarting),
            ..
        } => no_weight("restarting"),
        Status { stopping: true, .. } => "down #stopping\n".to_owned(),
        _ if unhealthy(status).is_some() => "down #no worker is ready\n".to_owned(),
        Status { drained: true, .. } => no_weight("drained"),
        Status { drain: Some(_), .. } => no_weight("leaving"),
        Status { listeners, .. } if listeners.iter().any(|l| l.outage.is_some()) => {
            no_weight("a listener is closed")
        }
        Status {
            pause: Some(Pause::Full),
            ..
        } => no_weight("full"),
        _ if !has_worker(status, &[WorkerState::Ready]) => no_weight("unhealthy"),
        _ => format!("up {}%\n", weight(status)),
    }
}

/// Returns the weight in percent, by the mean of the share of time in which the ready workers work.
fn weight(status: &Status) -> f64 {
    let ready = status
        .workers
        .iter()
        .filter(|w| w.state == WorkerState::Ready);
    let shares: Vec<f64> = ready.filter_map(|worker| worker.busy).collect();
    let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let weight = 100.0 - (100.0 - MIN_WEIGHT) * mean;
    ((weight / STEP).round() * STEP).clamp(MIN_WEIGHT, 100.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::serving::tests::{Member, status};
    use super::*;

    /// The state of a worker, and its busy share.
    type WorkerShare = (&'static str, f64);

    #[test]
    fn the_weight_follows_the_mean_share_of_the_ready_workers() {
        for (shares, expected) in [
            ([0.0, 0.0], 100),
            ([0.04, 0.04], 100),
            ([0.1, 0.1], 90),
            ([0.0, 1.0], 60),
            ([0.5, 0.6], 50),
            ([1.0, 1.0], 10),
            ([9.0, 9.0], 10),
            ([-9.0, -9.0], 100),
        ] {
            let workers = shares.map(|share| ("ready", share));
            let workers = [&workers[..], &[("stalled", 1.0), ("starting", 1.0)]].concat();
            let expected = format!("up {expected}%\n");
            assert_eq!(line(&status(&workers, &[])), expected, "{shares:?}");
        }
    }

    #[test]
    fn each_state_has_its_line() {
        let ready = [("ready", 0.5)];
        let drain = |notice: Value| json!({ "mode": "refuse", "notice": notice });
        let closed = json!([{
            "address": "127.0.0.1:1", "byte_order": "little", "accepted_total": 0, "outage": "gone"
        }]);
        let cases: [(&[WorkerShare], &[Member], &str); 11] = [
            (&ready, &[], "up 60%\n"),
            (&ready, &[("pause", json!("no_capacity"))], "up 60%\n"),
            (&ready, &[("pause", json!("full"))], "up 0% #full\n"),
            (&ready, &[("drain", drain(json!(9.5)))], "up 0% #leaving\n"),
            (
                &ready,
                &[("drain", drain(Value::Null)), ("drained", json!(true))],
                "up 0% #drained\n",
            ),
            (
                &ready,
                &[("listeners", closed)],
                "up 0% #a listener is closed\n",
            ),
            (&[("unhealthy", 0.5)], &[], "up 0% #unhealthy\n"),
            (
                &[("starting", 0.0), ("waiting", 0.0)],
                &[("drained", json!(true))],
                "down #no worker is ready\n",
            ),
            (&[], &[], "down #no worker is ready\n"),
            (&ready, &[("stopping", json!(true))], "down #stopping\n"),
            (
                &[],
                &[("stopping", json!(true)), ("pause", json!("restarting"))],
                "up 0% #restarting\n",
            ),
        ];
        for (workers, members, expected) in cases {
            assert_eq!(line(&status(workers, members)), expected, "{members:?}");
        }
    }
}
