//! What the benchmarks share. Each benchmark has its servers in `catalogue`, and what is measured in `scenario`.

pub(crate) mod cpu;
pub(crate) mod failure;
pub(crate) mod grid;
pub(crate) mod interrupt;
pub(crate) mod launch;
pub(crate) mod load;
pub(crate) mod server;
pub(crate) mod spread;
