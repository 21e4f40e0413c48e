//! The examples of the pages and of the guide work when they are pasted.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use fdpassd::testing::{ServiceManager, TIMEOUT};
use serde_json::json;

use crate::common::needs::skip;
use crate::common::page::Page;
use crate::common::program::{FDPASSCTL, Program, control_socket, run};
use crate::common::restart::{How, restart, wait_for_confirmed_store};
use crate::common::{FDPASSD, read, start, tcp_address};

#[test]
fn the_app_in_python_works_when_it_is_pasted() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3", "there is no python3");
    }
    let page = Page::of("fdpassd-app.7").section("EXAMPLES");
    let program = page.display_after("An app in Python without a package:");
    assert_eq!(program.lines().count(), 12, "{program}");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("app.py");
    fs::write(&file, program).expect("it is our directory");
    let file = file.display().to_string();
    let arguments = ["app", "check", "--timeout", "50s", "--", "python3", &file];
    let said = run(FDPASSCTL, &arguments);
    assert_eq!(said.code, Some(0), "{}", said.out);

    // Its bytes are those of the page.
    let displays = page.displays();
    let hello = displays.iter().find_map(|display| bytes(display));
    let (request, answer) = dumps("fdpassd-app.7").remove(0);
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    let mut app = Command::new("sh")
        .args([
            "-c",
            "exec python3 \"$0\" 3<&0 </dev/null >/dev/null",
            &file,
        ])
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .spawn()
        .expect("a shell");
    ours.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    ours.write_all(&request).expect("it is connected");
    let expected = [hello.expect("it has one"), answer].concat();
    let mut written = vec![0; expected.len()];
    ours.read_exact(&mut written).expect("it answers");
    assert_eq!(written, expected);

    // Params that Python cannot read, or cannot write again, are an error of their caller.
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let digits = "1".repeat(5000);
    let params = (900..1000)
        .map(deep)
        .chain([deep(100_000), digits, "5".to_owned()]);
    for (id, params) in (2..).zip(params) {
        let body = format!("{{\"id\":{id},\"in\":\"twice\",\"params\":{params}}}");
        let length = u32::try_from(body.len()).expect("it fits");
        ours.write_all(&length.to_le_bytes())
            .expect("it is connected");
        ours.write_all(body.as_bytes()).expect("it is connected");
        let mut length = [0; 4];
        ours.read_exact(&mut length).expect("it answers");
        let mut answer = vec![0; u32::from_le_bytes(length) as usize];
        ours.read_exact(&mut answer).expect("it answers");
        let answer = String::from_utf8(answer).expect("it is JSON");
        let is_right = match params.len() {
            1 => answer == format!("{{\"id\": {id}, \"result\": [5, 5]}}"),
            5000.. => answer == format!("{{\"id\": {id}, \"error\": {{\"code\": \"crashed\"}}}}"),
            _ => answer.starts_with(&format!("{{\"id\": {id}, ")),
        };
        assert!(is_right, "{answer:.200}");
    }
    drop(ours);
    assert!(app.wait().expect("our child").success());
}

#[test]
fn the_app_in_python_survives_restarts_of_the_daemon() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3", "there is no python3");
    }
    let page = Page::of("fdpassd-app.7").section("EXAMPLES");
    let program = page.display_after("An app in Python without a package:");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("app.py");
    fs::write(&file, program).expect("it is our directory");
    let config = format!("workers.count = 2\napp.command = [\"python3\", {file:?}]\n");
    let manager = ServiceManager::new();
    let mut daemon = manager.setup(FDPASSD, &config).start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    let mut client = daemon.connect();
    for how in [How::TermAll, How::Kill, How::Upgrade, How::TermAll] {
        assert_eq!(client.call("twice", "x"), Ok(json!(["x", "x"])), "{how:?}");
        // Answered by this app or the next.
        client.request("twice", 7);
        daemon = restart(&manager, daemon, how, Path::new(FDPASSD));
        assert_eq!(client.reply().value(), Ok(json!([7, 7])), "{how:?}");
    }
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (1, 0));
}

#[test]
fn the_page_has_the_methods_that_checks_use() {
    let told = Page::of("fdpassd-app.7").section("CHECKS").words("Cm");
    let source = read("src/ctl/app/requests.rs");
    let used = source.lines().filter_map(|line| {
        let (_, name) = line.split_once(": &str = \"check_")?;
        Some(format!("check_{}", name.trim_end_matches("\";")))
    });
    assert_eq!(told, used.collect());
}

#[test]
fn the_client_in_python_works_when_it_is_pasted() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3", "there is no python3");
    }
    let page = Page::of("fdpassd-rpc.7").section("EXAMPLES");
    let program = page.display_after("A client in Python:");
    assert!(program.lines().count() <= 10, "{program}");
    let daemon = start("");
    let address = tcp_address(&daemon);
    assert!(program.contains("8080"), "{program}");
    let said = run(
        "python3",
        &["-c", &program.replace("8080", &address.port().to_string())],
    );
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert_eq!(said.out, page.display_after("It prints:"));
}

#[test]
fn the_watcher_in_python_works_when_it_is_pasted() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3", "there is no python3");
    }
    let program = Page::of("fdpassd-control.7")
        .section("EXAMPLES")
        .display_after("Follow what happens, in Python:");
    let daemon = start("workers.count = 1");
    let program = program.replace(
        "/run/fdpassd/control.sock",
        &control_socket(&daemon).display().to_string(),
    );
    let mut watcher = Program::start(Command::new("python3").args(["-c", &program]));
    let line = watcher.line();
    assert!(
        line.starts_with("debug worker 1 (pid ") && line.ends_with(" started\n"),
        "{line:?}"
    );
    assert!(watcher.is_running());
}

#[test]
fn the_daemon_answers_with_the_bytes_in_the_pages() {
    let daemon =
        start("listen = [{ address = \"127.0.0.1:0\", byte-order = \"auto\" }]\nworkers.count = 2");
    daemon.wait_for_workers();
    let address = tcp_address(&daemon);
    let rpc = dumps("fdpassd-rpc.7");
    assert!(rpc.len() > 3, "{rpc:?}");
    for (request, expected) in rpc {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream
            .set_read_timeout(Some(TIMEOUT))
            .expect("it takes a timeout");
        stream.write_all(&request).expect("it takes the request");
        stream.shutdown(Shutdown::Write).expect("it is connected");
        let mut replies = Vec::new();
        stream
            .read_to_end(&mut replies)
            .expect("it answers, and closes then");
        assert_eq!(replies, expected);
    }
    daemon.wait_until("the clients have left", |status| status.clients == 0);
    let control = dumps("fdpassd-control.7");
    assert!(!control.is_empty());
    for (request, expected) in control {
        let mut stream = UnixStream::connect(control_socket(&daemon)).expect("it listens");
        stream
            .set_read_timeout(Some(TIMEOUT))
            .expect("it takes a timeout");
        stream.write_all(&request).expect("it takes the request");
        let mut reply = vec![0; expected.len()];
        stream.read_exact(&mut reply).expect("it answers");
        assert_eq!(reply, expected);
    }
}

#[test]
fn the_examples_of_configurations_are_good() {
    let examples = Page::of("fdpassd.toml.5").section("EXAMPLES").displays();
    assert!(examples.len() > 2);
    for example in examples {
        // Not every machine has these groups.
        let example = example
            .replace("\"operators\"", "\"0\"")
            .replace("\"monitoring\"", "\"0\"");
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), &example).expect("it is our file");
        let said = run(FDPASSD, &["-t", "-c", &file.path().display().to_string()]);
        assert_eq!(said.code, Some(0), "{example}\n{}", said.err);
    }
}

#[test]
fn the_example_of_a_mistake_is_real_output() {
    let display = Page::of("fdpassd.toml.5")
        .section("DIAGNOSTICS")
        .displays()
        .remove(0);
    let (_, shown) = display
        .split_once('\n')
        .expect("what fdpassctl says comes first");
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    fs::write(file.path(), "[log]\nformat = \"jsno\"\n").expect("it is our file");
    let said = run(FDPASSD, &["-t", "-c", &path]);
    assert_eq!(said.code, Some(78));
    assert_eq!(
        said.err.replace(&path, "/etc/fdpassd.toml"),
        format!("fdpassd: {shown}")
    );
}

/// Requests and replies that a page shows in bytes.
fn dumps(page: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let displays = Page::of(page).section("EXAMPLES").displays();
    let dump = |display: &String| {
        let (request, reply) = display.split_once("\n\n")?;
        Some((bytes(request)?, bytes(reply)?))
    };
    displays.iter().filter_map(dump).collect()
}

/// Returns the bytes of lines such as `7b 7d   {}`, which show each byte twice; `None` for other lines.
fn bytes(lines: &str) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for line in lines.lines() {
        let (hex, shown) = line.split_at_checked(47)?;
        let bytes: Option<Vec<u8>> = hex
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect();
        let bytes = bytes.filter(|bytes| !bytes.is_empty())?;
        let text: String = bytes
            .iter()
            .map(|byte| {
                if (32..127).contains(byte) {
                    *byte as char
                } else {
                    '.'
                }
            })
            .collect();
        assert_eq!(shown.strip_prefix("   "), Some(text.as_str()), "{line}");
        all.extend(bytes);
    }
    Some(all)
}
