//! Tests of the start, of control requests and of the end.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{fs, thread};

use serde_json::{Value, json};

use super::config::{CONTROL, complete, control_socket};
use super::directory::Directory;
use super::output::ProcessOutput;
use super::{Running, Setup};
use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::names::Address;

#[test]
fn missing_keys_are_added_to_a_configuration() {
    let dir = Path::new("/d");
    let bare = "control.socket = \"/d/control.sock\"\nlisten = [\"127.0.0.1:0\"]\n";
    assert_eq!(complete("", dir).parse::<toml::Table>(), bare.parse());
    let own = "listen = [\"unix:{dir}/rpc\"]\n[control]\nsocket = \"{dir}/c\"\nmode = \"0600\"";
    assert_eq!(
        complete(own, dir).parse::<toml::Table>(),
        own.replace("{dir}", "/d").parse()
    );
    assert_eq!(
        control_socket(&complete(own, dir)),
        Some(PathBuf::from("/d/c"))
    );
    assert_eq!(complete("not TOML", dir), "not TOML");
}

#[test]
fn a_failed_start_has_exit_code_and_standard_error() {
    let sh = Setup::new("sh", "")
        .argument("-c")
        .argument("echo no >&2; exit 78");
    let error = sh.start().expect_err("it does not serve");
    assert_eq!((error.code(), error.stderr()), (Some(78), "no\n"));
}

/// Runs a script in place of a master.
fn played_by(script: &str, control: PathBuf, directory: Directory) -> Running {
    let mut sh = Command::new("sh");
    sh.args(["-c", script]);
    let mut master = sh
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("sh");
    let output = ProcessOutput::from_pipe(master.stdout.take().expect("piped"));
    let log = ProcessOutput::from_pipe(master.stderr.take().expect("piped"));
    Running {
        master,
        output,
        log,
        control: Address::Unix(control),
        addresses: Vec::new(),
        directory,
    }
}

#[test]
fn control_requests_are_answered_in_any_order() {
    let directory = Directory::new().expect("a directory");
    let path = directory.0.join(CONTROL);
    let listener = UnixListener::bind(&path).expect("the path is free");
    let running = played_by("sleep 1000", path, directory);
    // The request, and the client that sent it.
    let asked = || {
        let mut asker = listener.accept().expect("it connects").0;
        let mut prefix = [0; PREFIX];
        asker.read_exact(&mut prefix).expect("a prefix");
        let mut body = vec![0; ByteOrder::Little.length(prefix) as usize];
        asker.read_exact(&mut body).expect("a body");
        (String::from_utf8(body).expect("JSON"), asker)
    };
    let answer = |mut asker: UnixStream, reply: &str| {
        asker
            .write_all(&ByteOrder::Little.prefix(reply.len() as u32))
            .expect("it is there");
        asker.write_all(reply.as_bytes()).expect("it is there");
    };

    let (mut first, mut second) = (
        running.ctl_request("a\"b", ()),
        running.ctl_request("hold", json!({"worker": 1})),
    );
    let (first_asked, first_asker) = asked();
    let (second_asked, second_asker) = asked();
    assert_eq!(first_asked, r#"{"in":"a\"b"}"#);
    assert_eq!(second_asked, r#"{"in":"hold","params":{"worker":1}}"#);
    answer(
        second_asker,
        r#"{"out":"error","result":{"code":"rejected","message":"no","place":{"line":3}}}"#,
    );
    assert!(!first.has_something());
    let refused = second.reply();
    let whole: Value = serde_json::from_str(refused.result.get()).expect("JSON");
    assert_eq!(whole["place"]["line"], 3);
    assert_eq!(refused.value().expect_err("an error").code(), "rejected");
    answer(first_asker, r#"{"out":"a","result":1}"#);
    assert_eq!(first.reply().value().expect("a result"), 1);

    // The file is complete when the reload is requested.
    let config = running.directory().join("config.toml");
    thread::scope(|threads| {
        threads.spawn(|| {
            let (request, asker) = asked();
            answer(
                asker,
                &json!({"out": "reload", "result": [request, fs::read_to_string(config).ok()]})
                    .to_string(),
            );
        });
        let result = running
            .reload_with("log.file = \"{dir}/log\"")
            .expect("a result");
        let text = complete("log.file = \"{dir}/log\"", running.directory());
        assert_eq!(result, json!([r#"{"in":"reload"}"#, text]));
    });
}

#[test]
fn dropping_a_daemon_ends_all_its_processes() {
    let directory = Directory::new().expect("a directory");
    let path = directory.0.clone();
    let script = "trap '' TERM; sleep 1000 & echo up; sleep 1000";
    let running = played_by(script, PathBuf::new(), directory);
    let output = Arc::clone(&running.output);
    assert!(running.output.wait(|output| output.text() == "up\n"));
    drop(running);
    assert!(output.wait(|output| output.ended) && !path.exists());
}
