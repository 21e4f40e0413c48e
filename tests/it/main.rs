//! The tests of the programs: each module starts the real daemon, or reads what ships with it.
//!
//! They are one program, so that the library is linked once: `cargo test --test it limits::` runs one module. Under
//! `cargo test` they share a process; a test that needs a process of its own starts this program again, see
//! [`common::namespace`].

mod common;

mod activation;
mod balance;
mod blame;
mod chaos;
mod children;
mod completions;
mod config;
mod container;
mod control;
mod control_hostile;
mod control_roles;
mod counterd;
mod ctl;
mod echo_raw;
mod events;
mod exporter;
mod fast_open;
mod figures;
mod frozen;
mod garbage;
mod handover;
mod kill_points;
mod layers;
mod library;
mod limits;
mod listeners;
mod listeners_reload;
mod logs;
mod looking;
mod loss;
mod man;
mod memory;
mod metrics;
mod missing;
mod notify;
mod original_client;
mod packaging;
mod passed_descriptors;
mod progress;
mod property;
mod rebalance;
mod recovery;
mod recycle;
mod reload;
mod reload_keys;
mod respawn;
mod restart;
mod serve;
mod shared_listeners;
mod shipped;
mod shutdown;
mod slow_clients;
mod stall;
mod steer;
mod store;
mod surroundings;
mod system_faults;
mod testing;
mod upgrade;
mod upgrade_faults;
