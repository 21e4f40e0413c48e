//! The key of `[agent]`.

use super::*;

#[test]
fn an_address_in_use_is_refused_for_agent_checks() {
    for address in ["127.0.0.1:1", "unix:/run/x"] {
        refused(
            &format!("listen = [\"[::]:2\", \"{address}\"]\n[agent]\n«listen = \"{address}\""),
            &format!("{address} is already listened on for clients"),
        );
        refused(
            &format!("metrics.listen = \"{address}\"\n[agent]\n«listen = \"{address}\""),
            &format!("{address} is already listened on for metrics"),
        );
    }
    refused(
        "control.socket = \"/run/x\"\nagent = { «listen = \"unix:/run//x\" }",
        "unix:/run//x is the control socket",
    );
    refused(
        "agent.listen = «9999",
        "invalid value: integer `9999`, expected an address in quotes, such as \"127.0.0.1:8080\"",
    );
    let any = "metrics.listen = \"[::1]:0\"\nagent.listen = \"[::1]:0\"";
    assert!(parse(any).agent.listen.is_some());
}
