//! fdpassd
pub mod proto;
/// x
pub fn daemon_main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
/// x
pub fn ctl_main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
