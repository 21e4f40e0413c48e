//! The daemon: master and worker alike.
fn main() -> std::process::ExitCode {
    fdpassd::daemon_main()
}
