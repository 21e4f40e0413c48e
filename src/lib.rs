//! fdpassd
mod channel;
mod config;
mod ctl;
mod desk;
mod logging;
mod pool;
pub mod proto;
mod sys;
pub mod testing;
mod worker;
/// x
pub fn daemon_main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
/// The whole of `fdpassctl`, from the arguments to the exit code.
pub fn ctl_main() -> std::process::ExitCode {
    ctl::main()
}
