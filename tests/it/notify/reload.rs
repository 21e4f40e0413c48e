//! Notifications of reloads.

use std::fs;

use fdpassd::testing::Setup;

use super::{Manager, after_time};
use crate::common::faulty::example;

#[test]
fn the_manager_is_notified_of_a_reload_before_its_reply() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    manager.wait_for("READY=1\nSTATUS=1 worker, 0 clients, generation 1");
    let mut asked = daemon.ctl_request("reload", ());
    let began = manager.next_but_statuses();
    let rest = after_time(&began, "RELOADING=1\nMONOTONIC_USEC=");
    assert_eq!(rest, "STATUS=1 worker, 0 clients, generation 1; reloading");
    asked.reply().value().expect("it is applied");
    let told: Vec<String> = std::iter::from_fn(|| manager.pending()).collect();
    assert!(
        told.iter()
            .any(|told| told.starts_with("READY=1\nSTATUS=1 worker, 0 clients, generation 2")),
        "{told:?}"
    );

    // A signal has no reply.
    daemon.signal("HUP");
    after_time(&manager.next_but_statuses(), "RELOADING=1\nMONOTONIC_USEC=");
    assert!(manager.next_but_statuses().starts_with("READY=1\nSTATUS="));
}

#[test]
fn a_rejected_file_ends_the_reload_for_the_manager() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    manager.wait_for("READY=1\nSTATUS=1 worker, 0 clients, generation 1");
    for ask in ["reload", "HUP"] {
        daemon.write_config("\"\\nMAINPID=1\\n\\u001b[2J\" = 1");
        if ask == "HUP" {
            daemon.signal(ask);
        } else {
            daemon.ctl(ask).expect_err("it is rejected");
        }
        let told = manager.next_but_statuses();
        let rest = after_time(&told, "RELOADING=1\nMONOTONIC_USEC=");
        let words = "READY=1\nSTATUS=1 worker, 0 clients, generation 1; last reload rejected: unknown key `";
        let message = rest
            .strip_prefix(words)
            .unwrap_or_else(|| panic!("{rest:?}"));
        assert!(!message.contains(|c: char| c.is_control()), "{message:?}");
    }
    // The next one that is applied is all that is left of it.
    daemon
        .reload_with("workers.count = 1")
        .expect("it is applied");
    let told = manager.next_but_statuses();
    let rejected =
        "; reloading; last reload rejected: unknown key `\\nMAINPID=1\\n\\x1b[2J`, expected";
    assert!(told.contains(rejected), "{told:?}");
    assert_eq!(
        manager.next_but_statuses(),
        "READY=1\nSTATUS=1 worker, 0 clients, generation 2"
    );
}

#[test]
fn a_reload_that_is_rolled_back_or_given_up_is_over_as_well() {
    let manager = Manager::new();
    let switch = manager.directory.path().join("fault");
    let config = "workers = { count = 1, start-timeout = \"5m\" }";
    let setup = Setup::new(example("faulty"), config);
    let setup = setup.variable("FAULTY", format!("file:{}", switch.display()));
    let mut daemon = setup
        .variable("NOTIFY_SOCKET", manager.path())
        .start()
        .expect("the daemon serves");
    manager.wait_for("READY=1\nSTATUS=1 worker, 0 clients, generation 1");
    fs::write(&switch, "fail").expect("it is our directory");
    let fault = daemon.reload().expect_err("no worker becomes ready");
    assert_eq!(fault.code(), "rolled_back");
    after_time(&manager.next_but_statuses(), "RELOADING=1\nMONOTONIC_USEC=");
    let told = manager.next_but_statuses();
    let words = "READY=1\nSTATUS=1 worker, 0 clients, generation 1; last reload rolled back: its workers do not become";
    assert!(
        told.starts_with(words) && told.contains("the model cannot be loaded"),
        "{told}"
    );

    // A second reload, which is refused, neither begins nor ends the one in progress for the manager.
    fs::write(&switch, "hang").expect("it is our directory");
    let _asked = daemon.ctl_request("reload", ());
    after_time(&manager.next_but_statuses(), "RELOADING=1\nMONOTONIC_USEC=");
    daemon.signal("HUP");
    let told = manager.next_but_statuses();
    assert!(
        after_time(&told, "RELOADING=1\nMONOTONIC_USEC=").starts_with("READY=1\nSTATUS="),
        "{told}"
    );
    daemon.signal("TERM");
    let told = manager.next_but_statuses();
    assert!(
        told.starts_with("READY=1\nSTATUS=")
            && told.contains("rolled back: the daemon is stopping"),
        "{told}"
    );
    let told = manager.next_but_statuses();
    assert!(
        told.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC="),
        "{told}"
    );
    assert!(daemon.wait().success());
}
