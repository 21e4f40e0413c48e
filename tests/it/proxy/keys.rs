//! The keys `proxy` and `proxy-from`.

use std::process::Command;

use fdpassd::testing::Setup;

use super::*;
use crate::common::FDPASSD;
use crate::common::program::{Program, ctl, run};

fn with_key(daemon: &Running, keys: &str) -> String {
    let Address::Tcp(address) = daemon.address() else {
        panic!("it is a TCP address")
    };
    let keys = if keys.is_empty() {
        String::new()
    } else {
        format!(", {keys}")
    };
    format!("listen = [{{ address = \"{address}\"{keys} }}]\nworkers.count = 1")
}

#[test]
fn a_reload_changes_the_keys_for_new_connections() {
    let daemon = start("workers.count = 1");
    let address = daemon.address().clone();
    let plain_keys = with_key(&daemon, "");
    daemon.reload_with(&plain_keys).expect("it is the same");
    let mut plain = Client::connect(&address);
    ping(&mut plain);
    let v2 = with_key(&daemon, "proxy = \"v2\", proxy-from = [\"127.0.0.1\"]");
    daemon.reload_with(&v2).expect("it is valid");
    let (header, peer) = client_v2(1);
    let mut behind = connect(&address, &header);
    assert_eq!(whoami(&mut behind)["peer"], *peer);
    let mut without = Client::connect(&address);
    without.request("ping", 1);
    assert_eq!(
        without.reply().value().expect_err("no header").code(),
        "bad_request"
    );
    let elsewhere = with_key(&daemon, "proxy = \"v2\", proxy-from = [\"192.0.2.20\"]");
    daemon.reload_with(&elsewhere).expect("it is valid");
    let mut outside = connect(&address, &header);
    assert_eq!(
        outside.reply().value().expect_err("outside").code(),
        "bad_request"
    );
    daemon.reload_with(&plain_keys).expect("it is valid");
    ping(&mut Client::connect(&address));
    // Those that were there before are not touched.
    ping(&mut plain);
    assert_eq!(whoami(&mut behind)["peer"], *peer);
}

#[test]
fn the_keys_are_shown_and_set_by_environment() {
    let listen =
        "[{ address = \"127.0.0.1:0\", proxy = \"any\", proxy-from = [\"127.0.0.0/8\", \"::1\"] }]";
    let setup = Setup::new(FDPASSD, "workers.count = 1").variable("FDPASSD__LISTEN", listen);
    let daemon = setup.start().expect("it serves");
    daemon.wait_for_workers();
    let shown = ctl(&daemon, &["config", "show"]).out;
    for part in [
        "proxy = \"any\"",
        "proxy-from = [\"127.0.0.0/8\", \"::1\"]",
        "environment",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    ping(&mut connect(daemon.address(), &client_v2(1).0));
}

#[test]
fn a_configuration_with_wrong_keys_is_refused_with_a_caret() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("fdpassd.toml");
    for (text, message) in [
        (
            "listen = [{ address = \"127.0.0.1:1\", proxy = \"v2\" }]",
            "proxy needs the key `proxy-from`",
        ),
        (
            "listen = [{ address = \"unix:/x\", proxy = \"v2\", proxy-from = [\"::1\"] }]",
            "proxy-from is for TCP addresses",
        ),
        (
            "listen = [{ address = \"127.0.0.1:1\", proxy = \"v2\", proxy-from = [\"10.0.0.1/8\"] }]",
            "the address has bits after the first 8",
        ),
    ] {
        fs::write(&file, text).expect("it is ours");
        let said = run(FDPASSD, &["-t", "-c", file.to_str().expect("UTF-8")]);
        assert!(
            said.code != Some(0) && said.err.contains(message),
            "{}",
            said.err
        );
        assert!(said.err.contains("^^^"), "{}", said.err);
    }
}

/// Without `--to`, `fdpassctl call` chooses a listener that expects no header.
#[test]
fn fdpassctl_calls_a_listener_without_the_key() {
    let config = r#"
        listen = [
            { address = "127.0.0.1:0", proxy = "v2", proxy-from = ["127.0.0.1"] },
            "unix:{dir}/rpc.sock",
        ]
        workers.count = 1
    "#;
    let daemon = start(config);
    let said = ctl(&daemon, &["call", "ping", "7"]);
    assert_eq!((said.code, said.out.trim()), (Some(0), "7"), "{}", said.err);
}

/// The printed command sends no header, so a listener that expects one would refuse it.
#[test]
fn the_printed_call_has_a_listener_without_the_key() {
    let proxied = "{ address = \"127.0.0.1:0\", proxy = \"v2\", proxy-from = [\"127.0.0.1\"] }";
    for plain in [Some("unix:{dir}/rpc.sock"), None] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_str().expect("UTF-8");
        let plain = plain.map(|plain| plain.replace("{dir}", path));
        let rest = plain.iter().map(|plain| format!(", \"{plain}\""));
        let rest: String = rest.collect();
        let text = format!("listen = [{proxied}{rest}]\ncontrol.socket = \"{path}/control.sock\"");
        let file = directory.path().join("fdpassd.toml");
        fs::write(&file, text).expect("it is our directory");
        let line = Program::start(Command::new(FDPASSD).arg("-c").arg(&file)).line();
        assert!(line.contains(" listens on 127.0.0.1:"), "{line}");
        let call = line.split_once("; call it: ").map(|(_, call)| call.trim());
        match &plain {
            Some(plain) => assert!(
                call.is_some_and(|call| call.ends_with(&format!("--to {plain}"))),
                "{line}"
            ),
            None => assert_eq!(call, None, "{line}"),
        }
    }
}
