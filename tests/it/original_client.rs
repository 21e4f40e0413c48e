//! The client that this protocol comes with: it packs the length in the machine's own byte order, sends it apart from
//! the body, and takes it for granted that two reads give a whole reply.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::needs::skip;
use crate::common::{start, tcp_address};

#[test]
fn the_original_client_is_served_without_a_stall() {
    let daemon = start(CONFIG);
    let mut client = daemon.connect().without_delay();
    let began = Instant::now();
    for i in 0..200 {
        client.call("ping", i).expect("a result");
    }
    let usual = began.elapsed();
    drop(client);

    let mut socket = TcpStream::connect(tcp_address(&daemon)).expect("the daemon listens");
    let mut times = Vec::new();
    let mut timed = |method, params: Value| {
        let began = Instant::now();
        let reply = rpc(&mut socket, method, &params).expect("a reply");
        times.push(began.elapsed());
        reply
    };
    for i in 0..100 {
        let text = json!(format!("ireader {i}"));
        assert_eq!(timed("ping", text.clone()), ("pong".to_owned(), text));
    }
    for i in 0..100 {
        let (out, result) = timed("pi", json!(i));
        let odd_squares = (0..i).map(|k| f64::from(2 * k + 1).powi(2));
        let pi = (8.0 * odd_squares.map(|square| 1.0 / square).sum::<f64>()).sqrt();
        assert!(
            out == "pi_r" && (result.as_f64().expect("a number") - pi).abs() < 1e-9,
            "{out}: {result}"
        );
    }
    // Each call would stall. The slowest ones do not count: the machine may have paused in them.
    times.sort_unstable();
    let took: Duration = times[..180].iter().sum();
    assert!(
        took < 10 * usual + Duration::from_secs(2),
        "180 of 200 calls took {took:?}, and 200 of another client {usual:?}"
    );
}

fn rpc(socket: &mut TcpStream, method: &str, params: &Value) -> io::Result<(String, Value)> {
    let request = json!({ "in": method, "params": params }).to_string();
    socket.write_all(&(request.len() as u32).to_ne_bytes())?;
    socket.write_all(request.as_bytes())?;
    let mut prefix = [0; 4];
    assert_eq!(socket.read(&mut prefix)?, 4);
    let mut body = vec![0; u32::from_ne_bytes(prefix) as usize];
    assert_eq!(socket.read(&mut body)?, body.len());
    let reply: Value = serde_json::from_slice(&body)?;
    Ok((
        reply["out"].as_str().unwrap_or_default().to_owned(),
        reply["result"].clone(),
    ))
}

#[test]
fn the_original_client_in_python_is_served() {
    let daemon = start(CONFIG);
    let port = tcp_address(&daemon).port().to_string();
    let python = Command::new("python3")
        .args(["-c", PYTHON, &port])
        .stdin(Stdio::null())
        .output();
    let output = match python {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return skip("python3", "there is no python3");
        }
        output => output.expect("python3 runs"),
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "pong ireader 49\npi_r 3.135\n"
    );
}

const PYTHON: &str = r#"
import json, socket, struct, sys

def rpc(sock, in_, params):
    request = json.dumps({"in": in_, "params": params}).encode()
    sock.sendall(struct.pack("I", len(request)))
    sock.sendall(request)
    length, = struct.unpack("I", sock.recv(4))
    response = json.loads(sock.recv(length))
    return response["out"], response["result"]

s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
s.settimeout(10)
s.connect(("127.0.0.1", int(sys.argv[1])))
for i in range(50):
    out, result = rpc(s, "ping", "ireader %d" % i)
    assert (out, result) == ("pong", "ireader %d" % i)
print(out, result)
for i in range(50):
    out, result = rpc(s, "pi", i)
print(out, "%.3f" % result)
s.close()
"#;

/// Listeners are little-endian by default, because the machines of these clients are.
const CONFIG: &str = if cfg!(target_endian = "little") {
    ""
} else {
    "listen = [{ address = \"127.0.0.1:0\", byte-order = \"big\" }]"
};
