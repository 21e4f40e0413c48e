//! `fdpassd init`: what it writes is served as it is, in each language.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use fdpassd::proto::names::Address;
use fdpassd::testing::Client;
use serde_json::json;
use tempfile::TempDir;

use crate::common::faulty::example;
use crate::common::needs::skip;
use crate::common::program::{Program, Said, install, run};
use crate::common::{FDPASSD, read, root};

/// Fails before Python 3.11.
const OLD_PYTHON: &str = "import sys; sys.exit(sys.version_info < (3, 11))";

/// Fails before Node.js 20.
const OLD_NODE: &str = "process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)";

/// Writes files into `hellod` of a new directory.
#[track_caller]
fn init(language: &str) -> (TempDir, Said) {
    let place = tempfile::tempdir().expect("a directory");
    let said = init_in(place.path(), language);
    assert_eq!(said.code, Some(0), "{said:?}");
    (place, said)
}

fn init_in(place: &Path, language: &str) -> Said {
    let sources = root().display().to_string();
    let mut command = Command::new(FDPASSD);
    command
        .args(["init", "--language", language, "--sources", &sources])
        .arg("hellod")
        .current_dir(place);
    Program::start(&mut command).finish()
}

/// Serves what was written, on a free port, and calls its method.
#[track_caller]
fn serve(program: impl AsRef<Path>, place: &TempDir, config: &str, variable: &str) {
    let mut command = Command::new(program.as_ref());
    command
        .args(["-c", config])
        .current_dir(place.path())
        .env("RUNTIME_DIRECTORY", place.path())
        .env(variable, r#"["127.0.0.1:0"]"#);
    let mut daemon = Program::start(&mut command);
    let line = daemon.line();
    let (_, rest) = line.split_once(" listens on ").expect("an address");
    let (address, _) = rest.split_once(';').expect("a call follows");
    let address: Address = address.parse().expect("an address");
    let mut client = Client::connect(&address);
    let greeting = client.call("hello", json!({"name": "you"}));
    assert_eq!(greeting, Ok(json!("Hello, you!")));
    let fault = client.call("hello", json!({"name": ""}));
    assert_eq!(fault.expect_err("no name").code(), "bad_params");
}

fn has(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    let is_there = output.is_ok_and(|output| output.status.success());
    if !is_there {
        skip(program, "it is missing or too old");
    }
    is_there
}

#[test]
fn init_writes_a_daemon_in_rust_that_serves() {
    let (place, said) = init("rust");
    let written = place.path().join("hellod");
    let main = fs::read_to_string(written.join("src/main.rs")).expect("it was written");
    // The example is built of this file.
    assert_eq!(main, read("templates/rust/main.rs"));
    let manifest = fs::read_to_string(written.join("Cargo.toml")).expect("it was written");
    let manifest: toml::Table = manifest.parse().expect("it is TOML");
    assert_eq!(manifest["package"]["name"].as_str(), Some("hellod"));
    let path = manifest["dependencies"]["fdpassd"]["path"].as_str();
    assert_eq!(path, root().to_str());
    assert!(
        said.out.starts_with("wrote hellod/Cargo.toml\n"),
        "{}",
        said.out
    );
    serve(
        example("hellod"),
        &place,
        "hellod/hellod.toml",
        "HELLOD__LISTEN",
    );
}

#[test]
fn init_writes_an_app_in_python_that_serves() {
    if has("python3", &["-c", OLD_PYTHON]) {
        let (place, _) = init("python");
        serve(FDPASSD, &place, "hellod/fdpassd.toml", "FDPASSD__LISTEN");
    }
}

#[test]
fn init_writes_an_app_in_node_js_that_serves() {
    if has("node", &["--eval", OLD_NODE]) {
        let (place, _) = init("node");
        // As `npm install` does.
        let modules = place.path().join("hellod/node_modules");
        fs::create_dir(&modules).expect("it is ours");
        symlink(root().join("sdk/node"), modules.join("fdpassd")).expect("it is ours");
        serve(FDPASSD, &place, "hellod/fdpassd.toml", "FDPASSD__LISTEN");
    }
}

#[test]
fn init_writes_an_app_in_go_that_serves() {
    if has("go", &["version"]) {
        let (place, _) = init("go");
        let mut build = Command::new("go");
        build
            .args(["build", "-o", "app", "."])
            .current_dir(place.path().join("hellod"))
            .env("GOFLAGS", "-mod=mod")
            .env("GOPROXY", "off");
        let said = Program::start(&mut build).finish();
        assert_eq!(said.code, Some(0), "{said:?}");
        serve(FDPASSD, &place, "hellod/fdpassd.toml", "FDPASSD__LISTEN");
    }
}

/// The Debian package has the libraries in `/usr/share/fdpassd`, and no sources.
#[test]
fn init_finds_the_libraries_of_a_package() {
    let usr = tempfile::tempdir().expect("a directory");
    let (bin, share) = (usr.path().join("sbin"), usr.path().join("share/fdpassd"));
    for path in [&bin, &share] {
        fs::create_dir_all(path).expect("it is ours");
    }
    symlink(root().join("sdk"), share.join("sdk")).expect("it is ours");
    let program = bin.join("fdpassd");
    install(Path::new(FDPASSD), &program, 0o755);
    let written = |language: &str| {
        let mut command = Command::new(&program);
        command
            .args(["init", "--language", language, "hello"])
            .current_dir(usr.path());
        Program::start(&mut command).finish()
    };
    let said = written("python");
    assert_eq!(said.code, Some(0), "{said:?}");
    let config = fs::read_to_string(usr.path().join("hello/fdpassd.toml")).expect("it was written");
    let path = share.join("sdk/python/src").display().to_string();
    assert!(
        config.contains(&format!("PYTHONPATH = {path:?}")),
        "{config}"
    );
    // The library for Rust is in the sources alone.
    let said = written("rust");
    assert!(
        said.err.contains("name their directory with --sources"),
        "{said:?}"
    );
}

#[test]
fn init_overwrites_no_file() {
    for language in ["rust", "python", "node", "go"] {
        let (place, said) = init(language);
        let written: Vec<&str> = said
            .out
            .lines()
            .filter_map(|line| line.strip_prefix("wrote "))
            .collect();
        let (kept, missing) = written.split_last().expect("files");
        let kept = place.path().join(kept);
        fs::write(&kept, "mine").expect("it is ours");
        for path in missing {
            fs::remove_file(place.path().join(path)).expect("it is ours");
        }
        let said = init_in(place.path(), language);
        assert_eq!(said.code, Some(71), "{said:?}");
        let name = written.last().expect("files");
        let expected = format!("fdpassd: {name} exists already; no file was written\n");
        assert_eq!((said.err, said.out), (expected, String::new()));
        assert_eq!(fs::read_to_string(kept).expect("it is there"), "mine");
        for path in missing {
            assert!(!place.path().join(path).exists(), "{path} was written");
        }
    }
}

#[test]
fn init_refuses_a_directory_without_a_valid_name() {
    let place = tempfile::tempdir().expect("a directory");
    for (name, words) in [
        ("My Daemon", "is not a valid name for a daemon"),
        ("workers", "is a name of fdpassd's own"),
        ("fdpassd", "is a name of fdpassd's own"),
    ] {
        let path = place.path().join(name).display().to_string();
        let sources = root().display().to_string();
        let said = run(FDPASSD, &["init", "--sources", &sources, &path]);
        assert_eq!(said.code, Some(71), "{said:?}");
        assert!(said.err.contains(words), "{}", said.err);
        assert!(!Path::new(&path).exists());
    }
}

#[test]
fn init_refuses_sources_that_are_elsewhere() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().display().to_string();
    let target = format!("{path}/hellod");
    let said = run(FDPASSD, &["init", "--sources", &path, &target]);
    assert_eq!(said.code, Some(71), "{said:?}");
    let words = "is not the directory of fdpassd's sources";
    assert!(said.err.contains(words), "{}", said.err);
    assert!(!Path::new(&target).exists());
}

#[test]
fn keys_in_comments_of_written_files_have_their_defaults() {
    let (place, _) = init("rust");
    let file = place.path().join("hellod/hellod.toml");
    let text = fs::read_to_string(&file).expect("it was written");
    let is_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && *line != "#";
    let keys = text.lines().filter(is_key).count();
    assert!(keys >= 4, "{text}");
    let set: Vec<&str> = text
        .lines()
        .map(
            |line| match is_key(&line) && !line.contains("metrics.listen") {
                true => &line[1..],
                false => line,
            },
        )
        .collect();
    let all = place.path().join("all.toml");
    fs::write(&all, set.join("\n")).expect("it is ours");
    let dump = |path: &Path| {
        let path = path.to_str().expect("it is UTF-8");
        let said = run(example("hellod"), &["-T", "-c", path]);
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out
    };
    let own = "\n[hellod]\ngreeting = \"Hello\"\n";
    let with_all = dump(&all);
    assert!(with_all.contains(own.trim_start()), "{with_all}");
    let without = dump(&file);
    let strip = |text: &str| {
        text.replace("greeting = \"Hello\"\n", "")
            .replace("[hellod]\n", "")
    };
    assert_eq!(strip(&with_all).trim_end(), strip(&without).trim_end());
}
