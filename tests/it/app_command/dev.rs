//! `fdpassd dev`: which files it watches, and that no change is missed.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use fdpassd::testing::{Client, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{APP, Place, wait_for_watch};
use crate::common::fifo::Fifo;
use crate::common::program::Program;
use crate::common::{FDPASSD, kernel};

/// Waits until the app multiplies by `factor`.
#[track_caller]
fn wait_for_factor(client: &mut Client, factor: u32) {
    eventually("the new code", || {
        let result = client.call("times", 1).expect("no call fails");
        (result == json!(factor)).then_some(())
    });
}

#[test]
fn dev_reloads_although_its_control_socket_was_removed() {
    let Some(place) = Place::new() else { return };
    let (daemon, mut client) = place.start("dev");
    let socket = place.0.path().join("control.sock");
    fs::remove_file(&socket).expect("it is there");
    place.write(3);
    wait_for_factor(&mut client, 3);
    eventually("the control socket is bound again", || {
        UnixStream::connect(&socket).ok()
    });
    // If the reload by the signal was quick, another one has followed it there. This one is there in any case.
    place.write(4);
    wait_for_factor(&mut client, 4);
    eventually("a reload over the socket is applied", || {
        let events = place.ctl(&["events", "--json"]);
        let applied = events.out.matches("reload_applied").count();
        (applied >= 2).then_some(())
    });
    // Here it cannot be bound. A reload that is still in progress may bind it before.
    eventually("a directory is in its place", || {
        let _ = fs::remove_file(&socket);
        fs::create_dir(&socket).ok()
    });
    for factor in [5, 7] {
        place.write(factor);
        wait_for_factor(&mut client, factor);
    }
    kernel::send(daemon.pid(), Signal::SIGINT);
    let said = daemon.finish();
    assert_eq!(said.code, Some(0), "{}", said.err);
    let reported = said.err.matches("the control socket cannot be reached");
    assert_eq!(reported.count(), 2, "once each time: {}", said.err);
}

#[test]
fn dev_watches_the_directory_of_a_script_elsewhere() {
    let Some(place) = Place::new() else { return };
    let elsewhere = tempfile::tempdir().expect("a directory");
    let directory = fs::canonicalize(elsewhere.path()).expect("it exists");
    let script = |factor: u32| {
        let text = APP.replace("FACTOR", &factor.to_string());
        fs::write(directory.join("next"), text).expect("it is ours");
        fs::rename(directory.join("next"), directory.join("app.py")).expect("it is ours");
    };
    let up = Path::new("..").join(elsewhere.path().file_name().expect("it has one"));
    for root in [directory.as_path(), &up] {
        script(2);
        let path = root.join("app.py").display().to_string();
        let arguments = ["dev", "--listen", "127.0.0.1:0", "--", "python3", &path];
        let mut daemon = Program::start(&mut place.command(FDPASSD, &arguments));
        let mut client = Place::connect(&mut daemon);
        assert_eq!(client.call("times", 1), Ok(json!(2)));
        wait_for_watch(&daemon);
        script(3);
        wait_for_factor(&mut client, 3);
        place.succeed("stop");
        let said = daemon.finish();
        assert_eq!(said.code, Some(0));
        let watched = format!("fdpassd dev: watching **/*.py in {}\n", directory.display());
        assert!(said.err.contains(&watched), "{watched}: {}", said.err);
    }
}

#[test]
fn dev_applies_a_change_during_a_reload_after_it() {
    let Some(place) = Place::new() else { return };
    let (daemon, mut client) = place.start("dev");
    let mut gate = Fifo::new(place.0.path());
    let begun = place.0.path().join("begun");
    place.write_text(&format!(
        "open({begun:?}, 'w'); open({:?}).readline()\n{}",
        gate.path(),
        APP.replace("FACTOR", "3")
    ));
    eventually("the next app has begun to start", || {
        begun.exists().then_some(())
    });
    place.write(5);
    gate.let_go();
    wait_for_factor(&mut client, 5);
    place.succeed("stop");
    let said = daemon.finish();
    assert_eq!(said.code, Some(0));
    assert_eq!(
        said.err.matches("app.py has changed").count(),
        2,
        "{}",
        said.err
    );
}
