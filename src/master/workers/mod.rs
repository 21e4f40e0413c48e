//! Workers: one worker process, its life, its load, and the attribution of its crash.

pub(crate) mod crash;
pub(crate) mod descendants;
pub(crate) mod lifecycle;
pub(crate) mod outgoing;
pub(crate) mod rebalance;
pub(crate) mod trust;
pub(crate) mod watchdog;
pub(crate) mod worker;
