//! The operator's tool.
fn main() -> std::process::ExitCode {
    fdpassd::ctl_main()
}
