//! fdpassd
pub mod config;
pub mod proto;
pub mod sys;
/// x
pub fn daemon_main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
/// x
pub fn ctl_main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
