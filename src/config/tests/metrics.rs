//! The keys of `[metrics]`.

use super::*;

#[test]
fn an_address_in_use_is_refused_for_metrics() {
    for address in ["127.0.0.1:1", "unix:/run/x"] {
        let message = format!("{address} is already listened on for clients");
        refused(
            &format!("listen = [\"[::]:2\", \"{address}\"]\n[metrics]\n«listen = \"{address}\""),
            &message,
        );
    }
    let marked =
        "control.socket = \"/run/x\"\nmetrics = { hosts = [], «listen = \"unix:/run//x\" }";
    refused(marked, "unix:/run//x is the control socket");
    refused(
        "metrics.listen = «9464",
        "invalid value: integer `9464`, expected an address in quotes, such as \"127.0.0.1:8080\"",
    );
    assert!(
        parse("listen = [\"[::1]:0\"]\nmetrics.listen = \"[::1]:0\"")
            .metrics
            .listen
            .is_some()
    );
}

#[test]
fn an_invalid_host_name_is_refused() {
    let expected = "expected a host's name of letters, digits, \"-\", \"_\" and \".\" in quotes and without a port, \
                    such as \"node1.example.org\"";
    let long = "a".repeat(64);
    let longer = [&long[1..]; 4].join(".");
    for wrong in [
        "",
        ".",
        "a.",
        "a..b",
        "-a",
        "a-",
        "*.example.org",
        "a:80",
        "::1",
        "a b",
        "ü",
        &long,
    ] {
        refused(
            &format!("metrics.hosts = [\"a\", «\"{wrong}\"]"),
            &format!("invalid value: string \"{wrong}\", {expected}"),
        );
    }
    Config::parse(&format!("metrics.hosts = [{longer:?}]"), ORIGIN)
        .expect_err("255 bytes, and a line too long to show");
    refused(
        "metrics.hosts = [«1]",
        &format!("invalid value: integer `1`, {expected}"),
    );
    refused(
        "metrics.hosts = «\"a\"",
        "invalid value: string \"a\", expected an array",
    );
    let names = |count: usize| {
        (1..=count)
            .map(|i| format!("\"{}{i}\",\n", &longer[..248]))
            .collect::<String>()
    };
    assert_eq!(
        parse(&format!("metrics.hosts = [{}]", names(64)))
            .metrics
            .hosts
            .len(),
        64
    );
    refused(
        &format!("metrics.hosts = [{}«\"b\", \"c\"]", names(64)),
        "there can be at most 64 names, these are 66",
    );
}
