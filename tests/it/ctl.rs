//! fdpassctl as people and scripts use it, and the line that tells how to.

mod failures;
mod output;
mod reach;
