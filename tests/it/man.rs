//! The man pages describe what the programs do, and nothing else; they can be read, and their examples work.

mod examples;
mod format;
mod programs;
mod replies;
