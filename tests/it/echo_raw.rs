//! `examples/echo_raw.rs`: a raw method returns its params byte for byte.

use fdpassd::testing::Setup;

use crate::common::faulty::example;

#[test]
fn the_raw_example_returns_the_bytes_of_its_params() {
    let setup = Setup::new(example("echo_raw"), "workers.count = 1");
    let daemon = setup.start().expect("the daemon serves");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    let params = r#"{"price": 1.10, "price": 1e400,"name":"\u0061"}"#;
    client.send_frame(format!(r#"{{"in":"echo","params":{params}}}"#));
    let reply = String::from_utf8(client.receive()).expect("UTF-8");
    assert_eq!(reply, format!(r#"{{"out":"echo_r","result":{params}}}"#));
}
