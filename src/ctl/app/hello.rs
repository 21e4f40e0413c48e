//! The rules for what an app declares in its hello.

use std::collections::BTreeSet;

use crate::proto::app::{AppMetric, Hello, MAX_CONCURRENCY, MAX_METHODS, MetricKind};
use crate::proto::channel::{MethodName, check_methods};
use crate::proto::own_metrics::{
    COUNTER_END, MAX_BOUNDS, MAX_HELP_LEN, MAX_NAME_LEN, MAX_OWN_METRICS, RESERVED_ENDS,
    are_bounds, is_help, is_metric_name,
};
use crate::proto::rpc::is_method_name;

/// Checks the methods, the concurrency and the metrics of a hello.
///
/// # Errors
/// The first rule that the hello breaks, as a sentence.
pub(super) fn check(hello: &Hello) -> Result<(), String> {
    let Hello {
        methods,
        concurrency,
        metrics,
        ..
    } = hello;
    if methods.len() > MAX_METHODS {
        return Err(format!("hello has more than {MAX_METHODS} methods"));
    }
    if *concurrency > MAX_CONCURRENCY {
        return Err(format!("concurrency is above {MAX_CONCURRENCY}"));
    }
    let mut names = BTreeSet::new();
    for method in methods {
        let name = &method.name;
        if ["ping", "methods"].contains(&name.as_str()) {
            return Err(format!("the method {name:?} is the daemon's own"));
        }
        let replies = method.reply.iter();
        if let Some(name) = [name]
            .into_iter()
            .chain(replies)
            .find(|n| !is_method_name(n))
        {
            return Err(format!(
                "{name:?} is not a valid name: [a-z][a-z0-9_.-]{{0,63}}, but not \"error\""
            ));
        }
        if !names.insert(name) {
            return Err(format!("hello has the method {name:?} twice"));
        }
    }
    let own = ["ping", "methods"].map(|name| (name.to_owned(), true));
    let of_app = methods.iter().map(|m| (m.name.clone(), m.idempotent));
    let all = own.into_iter().chain(of_app);
    let all: Vec<MethodName> = all
        .map(|(name, idempotent)| MethodName { name, idempotent })
        .collect();
    check_methods(&all)?;
    check_metrics(metrics)
}

/// Checks the metrics of a hello by the rules of the worker, which the workers' `apps::metrics` applies.
fn check_metrics(metrics: &[AppMetric]) -> Result<(), String> {
    // Two counters may be shown under one name.
    let mut names = BTreeSet::new();
    for AppMetric {
        name,
        kind,
        help,
        buckets,
    } in metrics
    {
        let is_counter = *kind == MetricKind::Counter;
        let shown = match is_counter && !name.ends_with(COUNTER_END) {
            true => format!("{name}{COUNTER_END}"),
            false => name.clone(),
        };
        if !names.insert(shown.clone()) {
            return Err(format!("hello has the metric {shown:?} twice"));
        }
        if !is_metric_name(&shown) {
            return Err(format!(
                "{shown:?} is not a valid name for a metric: [a-zA-Z_][a-zA-Z0-9_]{{0,{}}}",
                MAX_NAME_LEN - 1
            ));
        }
        if !is_help(help) {
            return Err(format!(
                "the help of metric {name:?} must be one line of at most {MAX_HELP_LEN} bytes"
            ));
        }
        let reserved = RESERVED_ENDS.iter().find(|end| name.ends_with(*end));
        if let Some(end) = reserved.filter(|_| !is_counter) {
            return Err(format!(
                "the name of histogram {name:?} must not end in {end}"
            ));
        }
        if !is_counter && !buckets.is_empty() && !are_bounds(buckets) {
            return Err(format!(
                "histogram {name:?} needs 1 to {MAX_BOUNDS} bounds in ascending order"
            ));
        }
    }
    match metrics.len() > MAX_OWN_METRICS {
        true => Err(format!("hello has more than {MAX_OWN_METRICS} metrics")),
        false => Ok(()),
    }
}
