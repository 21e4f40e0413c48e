//! `fdpassctl` for the daemon of `counterd.rs`: the same verbs, and its control socket is found without an option.
//!
//! ```sh
//! cargo run --example counterctl -- status
//! ```

fn main() -> std::process::ExitCode {
    fdpassd::ctl_main_for("counterd")
}
