//! The params, replies and faults of methods.

use fdpassd::testing::Running;
use serde_json::{Value, json};

use crate::common::faulty::{self, example, whoami};

#[test]
fn params_that_are_not_the_methods_type_are_bad_params() {
    let daemon = Running::start(example("resized"), "").expect("it serves");
    let mut client = daemon.connect();
    for params in [
        json!(null),
        json!([]),
        json!({"picture": [1, 1]}),
        json!({"picture": [1, 1], "frame": [1]}),
        json!({"picture": [1, 1], "frame": [1, -1]}),
        json!({"picture": [1, 1], "frame": [1, 1], "quality": 3}),
        json!({"picture": [1, 1], "frame": [1, 4_294_967_296_u64]}),
    ] {
        let fault = client.call("fit", &params).expect_err("that is not a Fit");
        assert_eq!(fault.code(), "bad_params", "{params}: {fault}");
    }
    assert_eq!(client.call("report", ()).expect("a result")["fitted"], 0);
}

#[test]
fn nan_and_infinity_become_null() {
    let daemon = faulty::start("");
    assert_eq!(
        daemon.call("nan", ()).expect("a result"),
        json!([null, null, 1.0])
    );
}

#[test]
fn a_fault_has_the_code_and_message_of_the_method() {
    let daemon = faulty::start("");
    for (code, message) in [
        ("no_such_image", "there is none"),
        ("error", ""),
        ("bad_params", "\n\u{0}\u{1b}\u{202e}µ"),
        ("internal", "x"),
    ] {
        let fault = daemon.call("fault", (code, message)).expect_err("a fault");
        assert_eq!((fault.code(), fault.message()), (code, message));
    }
    let long = "x".repeat(100_000);
    let fault = daemon.call("fault", ("long", &long)).expect_err("a fault");
    assert!(
        fault.code() == "long" && long.starts_with(fault.message().trim_end_matches('…')),
        "{fault}"
    );
}

#[test]
fn codes_of_the_daemon_and_invalid_ones_become_internal() {
    let daemon = faulty::start("");
    let rule = "a code is [a-z][a-z0-9_]{0,63}";
    let of_daemon = "only the daemon itself uses it";
    for (code, why) in [
        ("timeout", of_daemon),
        ("crashed", of_daemon),
        ("overloaded", of_daemon),
        ("unknown_method", of_daemon),
        ("", rule),
        ("Not Found", rule),
        ("no.such-image", rule),
    ] {
        let fault = daemon.call("fault", (code, "why")).expect_err("a fault");
        assert_eq!((fault.code(), fault.message()), ("internal", "why"));
        daemon.wait_for_log(&format!(
            "method \"fault\" returned a fault with the code {code:?}: {why}; its caller got \"internal\""
        ));
    }
    let long = "x".repeat(100_000);
    let fault = daemon.call("fault", (&long, "why")).expect_err("a fault");
    assert_eq!(fault.code(), "internal");
    daemon.wait_for_log(&format!("the code {:?}: {rule}", "x".repeat(64)));
}

#[test]
fn the_private_key_of_serde_json_is_refused() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let pid = whoami(&mut client).pid;
    let deep = "{\"$serde_json::private::RawValue\":\"[\\\"x\\\"]\"}";
    for params in [
        deep.to_owned(),
        format!("[{deep}]"),
        deep.replace("RawValue", "Number"),
    ] {
        client.send_frame(format!("{{\"in\":\"anything\",\"params\":{params}}}"));
        let fault = client.reply().value().expect_err("it is refused");
        assert!(
            fault.code() == "bad_params" && fault.message().contains("$serde_json::private::"),
            "{fault}"
        );
    }
    assert_eq!(whoami(&mut client).pid, pid);
}

#[test]
fn params_nested_too_deeply_for_a_method_are_refused() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let pid = whoami(&mut client).pid;
    for depth in [129, 100_000] {
        client.send_frame(format!(
            "{{\"in\":\"anything\",\"params\":{}{}}}",
            "[".repeat(depth),
            "]".repeat(depth)
        ));
        let fault = client.reply().value().expect_err("it is refused");
        assert_eq!(fault.code(), "bad_params", "{fault}");
    }
    assert_eq!(whoami(&mut client).pid, pid);
}

#[test]
fn a_result_that_is_too_long_is_an_error_reply() {
    let daemon = faulty::start("limits.max-frame = \"64KiB\"");
    let mut client = daemon.connect();
    // Every character of it takes six bytes when it is written.
    let words = "\u{1}".repeat(10_000);
    client.send_frame(format!(
        "{{\"in\":\"anything\",\"params\":\"{}\"}}",
        "\\u0001".repeat(10_000)
    ));
    assert_eq!(
        client.reply().value().expect("60,000 bytes fit"),
        Value::from(words)
    );
    let zeros = "1e9,".repeat(15_000);
    client.send_frame(format!("{{\"in\":\"anything\",\"params\":[{}0]}}", zeros));
    let fault = client
        .reply()
        .value()
        .expect_err("each of them is written as 1000000000.0");
    assert!(
        fault.code() == "internal" && fault.message().contains("longer than the"),
        "{fault}"
    );
    assert_eq!(client.call("anything", 1).expect("a result"), 1);
}
