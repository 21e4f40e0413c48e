//! fdpassctl as people and scripts use it, and the line of the daemon that shows how.

mod failures;
mod output;
mod reach;
mod selection;
