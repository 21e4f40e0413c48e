//! The man pages say what the programs do, and nothing else; they can be read, and their examples work.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use fdpassd::proto::control::{Kind, RefusalCode, Verb};
use fdpassd::proto::names::Address;
use fdpassd::proto::rpc::Code;
use fdpassd::testing::TIMEOUT;
use serde_json::{Value, json};

use crate::common::needs::{skip, skip_part};
use crate::common::page::{self, Entry, PAGES, Page};
use crate::common::program::{FDPASSCTL, Program, Said, control_socket, ctl, run};
use crate::common::{FDPASSD, faulty, start};

#[test]
fn the_page_has_exactly_the_keys_and_their_defaults() {
    let keys = Page::of("fdpassd.toml.5").section("KEYS");
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    for title in keys.subsections() {
        let section = if title == "Listeners" { "" } else { title };
        for entry in keys.subsection(title).entries("Ic") {
            let key = format!("{section}{}", entry.head[1]);
            assert!(
                entry.body.contains("\nReload: "),
                "{key}: what a reload does with it is not told"
            );
            // Only what stands in the file in that way is a value, and not a word about it.
            let default = entry.parenthesis().unwrap_or_default();
            let is_value = default.starts_with(['"', '[', '{'])
                || default == "false"
                || default.parse::<u64>().is_ok();
            told.insert(key, if is_value { default } else { String::new() });
        }
    }
    assert_eq!(told, shipped_keys());
}

#[test]
fn every_option_of_the_daemon_is_in_its_page_and_no_other() {
    let page = Page::of("fdpassd.8");
    let help = run(FDPASSD, &["-h"]).out;
    let options = options_of(&help);
    assert!(options.len() > 5, "{help}");
    assert_eq!(page.options(), options);
    let entries = page.section("DESCRIPTION").entries("Fl");
    let listed: BTreeSet<String> = entries.iter().flat_map(Entry::options).collect();
    assert_eq!(listed, options);
}

#[test]
fn the_page_has_exactly_the_verbs_and_options_of_fdpassctl() {
    let page = Page::of("fdpassctl.8");
    let description = page.section("DESCRIPTION");
    let entries = description.entries("Ic");
    let help = |words: &[&str]| run(FDPASSCTL, &[&["help"], words].concat()).out;
    let mut general = options_of(&help(&[]));
    // These are understood everywhere, whether its help has room for them or not.
    for option in ["-h", "--help", "-V", "--version"] {
        assert_eq!(run(FDPASSCTL, &[option]).code, Some(0), "{option}");
        general.insert(option.to_owned());
    }
    let mut verbs = verbs_of(&help(&[]));
    verbs.insert("help".to_owned());
    let told: BTreeSet<String> = entries.iter().map(|entry| entry.head[1].clone()).collect();
    assert_eq!(told, verbs);

    let mut all = general.clone();
    for verb in verbs.iter().filter(|verb| *verb != "help") {
        let of_verb: Vec<_> = entries
            .iter()
            .filter(|entry| entry.head[1] == *verb)
            .collect();
        let inner: BTreeSet<String> = verbs_of(&help(&[verb]))
            .into_iter()
            .filter(|inner| inner != "help")
            .collect();
        let helps = inner.iter().map(|inner| help(&[verb, inner]));
        let own: BTreeSet<String> = std::iter::once(help(&[verb]))
            .chain(helps)
            .flat_map(|help| options_of(&help))
            .filter(|option| !general.contains(option))
            .collect();
        let told: BTreeSet<String> = of_verb.iter().flat_map(|entry| entry.options()).collect();
        assert_eq!(told, own, "{verb}");
        all.extend(own);
        // `config` and `app` have verbs of their own.
        if !inner.is_empty() {
            let told: BTreeSet<String> =
                of_verb.iter().map(|entry| entry.head[2].clone()).collect();
            assert_eq!(told, inner, "{verb}");
        }
    }
    assert_eq!(page.options(), all);

    let guide = read("docs/operating.md");
    for words in guide.split("fdpassctl ").skip(1) {
        let verb = words
            .split(|letter: char| !(letter.is_ascii_lowercase() || letter == '-'))
            .next()
            .unwrap_or_default();
        assert!(
            verb.is_empty() || verbs.contains(verb),
            "docs/operating.md tells of a verb {verb:?}"
        );
    }
}

#[test]
fn the_exit_codes_are_those_of_the_help_and_of_the_programs() {
    let listed = |page: &str| -> BTreeSet<u8> {
        let text = Page::of(page).section("EXIT STATUS");
        text.text()
            .lines()
            .filter_map(|line| line.strip_prefix(".It ")?.parse().ok())
            .collect()
    };
    let in_help = |help: &str| -> BTreeSet<u8> {
        let (_, codes) = help.split_once("Exit").expect("the help has them");
        codes
            .split([',', ':'])
            .filter_map(|code| code.split_whitespace().find_map(|word| word.parse().ok()))
            .collect()
    };
    let in_source = |file: &str, before: &str| -> BTreeSet<u8> {
        let source = read(file);
        let numbers = source
            .lines()
            .filter_map(|line| line.trim().split_once(before));
        numbers
            .filter_map(|(_, number)| number.trim_end_matches([',', ';']).parse().ok())
            .collect()
    };
    let codes = listed("fdpassctl.8");
    assert_eq!(codes, in_help(&run(FDPASSCTL, &["--help"]).out));
    assert_eq!(codes, in_source("src/ctl/error.rs", " = "));
    let codes = listed("fdpassd.8");
    assert_eq!(codes, in_help(&run(FDPASSD, &["-h"]).out));
    let of_daemon = in_source("src/daemon/run.rs", ": u8 = ");
    let of_master = in_source("src/master/error.rs", ") => ");
    assert_eq!(codes, &(&of_daemon | &of_master) | &BTreeSet::from([0]));
}

#[test]
fn the_signals_are_those_that_are_caught() {
    let source = read("src/sys/signal.rs");
    let caught: BTreeSet<String> = source
        .lines()
        .filter_map(|line| line.split_once(" = SIG"))
        .map(|(_, name)| format!("SIG{}", name.trim_end_matches(',')))
        .collect();
    assert!(caught.len() > 5, "{source}");
    assert_eq!(Page::of("fdpassd.8").section("SIGNALS").words("Dv"), caught);
}

#[test]
fn the_page_has_exactly_the_verbs_events_and_codes_of_control() {
    let page = Page::of("fdpassd-control.7");
    let verbs = page.section("VERBS").entries("Ic");
    let told: BTreeMap<&str, bool> = verbs
        .iter()
        .map(|e| (e.head[1].as_str(), e.parenthesis().is_some()))
        .collect();
    // `log-level` changes something if it has params.
    let changes = |verb: Verb| verb.changes() || verb == Verb::LogLevel;
    assert_eq!(
        told,
        Verb::ALL
            .iter()
            .map(|verb| (verb.as_str(), changes(*verb)))
            .collect()
    );
    let events: BTreeSet<String> = Kind::ALL
        .iter()
        .map(|kind| kind.as_str().to_owned())
        .collect();
    assert_eq!(page.section("EVENTS").words("Cm"), events);

    let codes = RefusalCode::ALL.map(|code| code.as_str().to_owned());
    let section = page.section("VERBS").subsection("Errors");
    assert_eq!(section.words("Sy"), BTreeSet::from(codes));
}

#[test]
fn the_page_has_exactly_the_codes_and_methods_of_the_rpc() {
    let page = Page::of("fdpassd-rpc.7").section("DESCRIPTION");
    let codes = Code::ALL.map(|code| code.as_str().to_owned());
    assert_eq!(page.subsection("Errors").words("Sy"), BTreeSet::from(codes));

    let methods = start("").call("methods", ()).expect("a result");
    let methods = methods
        .as_array()
        .expect("an array")
        .iter()
        .map(|method| method["name"].as_str().expect("a name"));
    assert_eq!(
        page.subsection("Methods").words("Cm"),
        methods.map(str::to_owned).collect()
    );
}

#[test]
fn every_metric_with_its_labels_is_in_the_page_and_no_other() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    // So that there is something to compare.
    let _clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = daemon.connect();
            client.call("pi", 1000).expect("a result");
            client
        })
        .collect();
    let page = Page::of("fdpassd-control.7").section("METRICS");
    let text = daemon.ctl("metrics").expect("a result")["text"]
        .as_str()
        .expect("a text")
        .to_owned();
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let families: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    for family in &families {
        let samples = text.lines().filter(|line| line.starts_with(family));
        let samples = samples.filter(|line| line[family.len()..].starts_with(['{', ' ']));
        let pairs: BTreeSet<(&str, &str)> = samples.flat_map(label_pairs).collect();
        labels.insert(
            (*family).to_owned(),
            pairs.iter().map(|(label, _)| (*label).to_owned()).collect(),
        );
        for (label, value) in pairs {
            let is_open = matches!(label, "worker" | "listener" | "method" | "name" | "version");
            let is_told = page.text().split([' ', '\n']).any(|word| word == value);
            assert!(
                is_open || is_told,
                "{family}: the page does not tell of {label}={value:?}"
            );
        }
    }
    let told = page.entries("Cm").into_iter().map(|entry| {
        let labels = entry.head.iter().skip_while(|word| *word != "Brq").skip(1);
        (
            entry.head[1].clone(),
            labels
                .map(|label| label.trim_end_matches(',').to_owned())
                .collect(),
        )
    });
    assert_eq!(told.collect::<BTreeMap<_, BTreeSet<_>>>(), labels);

    let guide = read("docs/operating.md");
    for name in guide.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')) {
        let family = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        let is_metric = !name.starts_with("fdpassd_")
            || labels.contains_key(name)
            || labels.contains_key(family);
        assert!(
            is_metric,
            "docs/operating.md tells of {name}, which there is not"
        );
    }
}

#[test]
fn the_alerts_of_the_guide_are_good_rules() {
    if Command::new("promtool").arg("--version").output().is_err() {
        return skip("promtool", "there is no promtool");
    }
    let guide = read("docs/operating.md");
    let (_, rules) = guide.split_once("```yaml\n").expect("there are rules");
    let (rules, _) = rules.split_once("```").expect("they end");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), rules).expect("it is our file");
    let said = run(
        "promtool",
        &["check", "rules", &file.path().display().to_string()],
    );
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
}

#[test]
fn every_member_of_a_reply_of_the_daemon_is_in_the_page() {
    let daemon = faulty::start("workers.count = 2");
    let status = daemon.wait_for_workers();
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a result");
    daemon
        .reload_with("workers.count = \"two\"")
        .expect_err("it is bad");
    daemon
        .ctl_with("hold", json!({ "worker": status.workers[0].id }))
        .expect("it is ready");
    daemon.write_config("workers.count = 3");
    let asks = [
        ("version", Value::Null),
        ("status", Value::Null),
        ("clients", Value::Null),
        ("events", Value::Null),
        ("config", Value::Null),
        ("check", Value::Null),
        ("log-level", json!({"level": "debug"})),
        ("metrics", Value::Null),
        ("scale", json!({"count": 2})),
        ("rebalance", json!({"dry_run": true})),
        ("reload", Value::Null),
        (
            "kick",
            json!({"client": daemon.ctl("clients").expect("a page")["clients"][0]["id"]}),
        ),
        ("stop", Value::Null),
    ];
    let mut members = BTreeSet::new();
    for (verb, params) in asks {
        collect_members(
            &daemon
                .ctl_with(verb, params)
                .unwrap_or_else(|fault| panic!("{verb}: {fault}")),
            &mut members,
        );
    }
    for member in [
        "waits_for",
        "killed_in_seconds",
        "quarantined",
        "skew",
        "verdict",
        "idle_seconds",
        "asker",
    ] {
        assert!(
            members.contains(member),
            "the replies have no {member}: {members:?}"
        );
    }
    let page = Page::of("fdpassd-control.7");
    let words: BTreeSet<&str> = page
        .text()
        .split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
        .collect();
    let missing: Vec<_> = members
        .iter()
        .filter(|member| !words.contains(member.as_str()))
        .collect();
    assert!(missing.is_empty(), "the page does not tell of {missing:?}");
}

#[test]
fn the_lines_and_columns_of_the_tables_are_in_the_page() {
    let daemon = start("workers.count = 2");
    let status = daemon.wait_for_workers();
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a result");
    daemon.reload().expect("applied");
    daemon
        .ctl_with("hold", json!({ "worker": daemon.status().workers[0].id }))
        .expect("it is ready");
    assert_eq!(status.workers.len(), 2);
    let page = Page::of("fdpassctl.8");
    let status = ctl(&daemon, &["status"]).out;
    let told = page.section("STATUS").words("Cm");
    let (lines, tables) = status
        .split_once("\n\n")
        .expect("a blank line is before the tables");
    for line in lines.lines().skip(1) {
        let label = line.split(' ').next().expect("it has a word");
        assert!(
            told.contains(label),
            "{label} is not in the page:\n{status}"
        );
    }
    let headers: Vec<&str> = tables
        .lines()
        .filter(|line| line.trim_start().starts_with("ID "))
        .collect();
    assert_eq!(headers.len(), 2, "a worker is held: {status}");
    for column in headers[0].split_whitespace() {
        assert!(
            told.contains(column),
            "{column} is not in the page:\n{status}"
        );
    }
    for word in headers[1].split_whitespace() {
        assert!(
            page.section("STATUS").text().contains(word),
            "{word} is not in the page:\n{status}"
        );
    }
    let clients = ctl(&daemon, &["clients"]).out;
    let columns: BTreeSet<String> = clients
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(page.section("CLIENTS").words("Cm"), columns, "{clients}");
}

#[test]
fn the_pages_are_good_mdoc() {
    if Command::new("mandoc").arg("/dev/null").output().is_err() {
        return skip("mandoc", "there is no mandoc");
    }
    for name in PAGES {
        let Said { out, err, .. } = run(
            "mandoc",
            &[
                "-T",
                "lint",
                "-W",
                "warning",
                &page::path(name).display().to_string(),
            ],
        );
        assert_eq!((out.as_str(), err.as_str()), ("", ""), "{name}");
    }
}

/// Text pasted from a page must work, and a page must fit on a terminal.
#[test]
fn the_pages_fit_into_80_columns_and_can_be_pasted_from() {
    let renderers: [(&str, &[&str]); 2] = [
        ("mandoc", &["-T", "utf8", "-O", "width=78"]),
        ("man", &["-l"]),
    ];
    for (renderer, arguments) in renderers {
        if Command::new(renderer).arg("/dev/null").output().is_err() {
            skip_part(renderer, &format!("there is no {renderer}"));
            continue;
        }
        for name in PAGES {
            let mut command = Command::new(renderer);
            command
                .args(arguments)
                .arg(page::path(name))
                .env("MANWIDTH", "80")
                .env("LC_ALL", "C.UTF-8");
            let output = command.output().expect("it ran a moment ago");
            let text = without_overstrike(&String::from_utf8(output.stdout).expect("UTF-8"));
            assert!(text.lines().count() > 50, "{renderer} {name}: {text}");
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{renderer} {name}: {line}");
            }
            for display in Page::of(name).displays() {
                let rendered = |line: &&str| {
                    text.lines()
                        .any(|shown| shown.trim_start() == line.trim_start())
                };
                let wrong = display.lines().find(|line| !rendered(line));
                assert!(
                    wrong.is_none(),
                    "{renderer} {name}: this is shown otherwise: {wrong:?}"
                );
            }
        }
    }
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
    let Address::Tcp(address) = daemon.address() else {
        panic!("it listens on TCP")
    };
    assert!(program.contains("8080"), "{program}");
    let said = run(
        "python3",
        &["-c", &program.replace("8080", &address.port().to_string())],
    );
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert_eq!(said.out, page.display_after("It prints:"));
}

#[test]
fn the_app_in_python_works_when_it_is_pasted() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3", "there is no python3");
    }
    let page = Page::of("fdpassd-app.7").section("EXAMPLES");
    let program = page.display_after("An app in Python without a library:");
    assert_eq!(program.lines().count(), 12, "{program}");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("app.py");
    fs::write(&file, program).expect("it is our directory");
    let file = file.display().to_string();
    let said = run(FDPASSCTL, &["app", "check", "--", "python3", &file]);
    assert_eq!(said.code, Some(0), "{}", said.out);

    // Its bytes are those of the page.
    let displays = page.displays();
    let hello = displays.iter().find_map(|display| bytes(display));
    let (request, answer) = dumps("fdpassd-app.7").remove(0);
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    let mut app = Command::new("sh")
        .args(["-c", "exec python3 \"$0\" 3<&0 </dev/null", &file])
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .spawn()
        .expect("a shell");
    ours.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    ours.write_all(&request).expect("it is connected");
    let expected = [hello.expect("it has one"), answer].concat();
    let mut written = vec![0; expected.len()];
    ours.read_exact(&mut written).expect("it answers");
    assert_eq!(written, expected);
    drop(ours);
    assert!(app.wait().expect("our child").success());
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
    let Address::Tcp(address) = daemon.address() else {
        panic!("it listens on TCP")
    };
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
    fs::write(file.path(), "[workers]\ndispatch = \"least\"\n").expect("it is our file");
    let said = run(FDPASSD, &["-t", "-c", &path]);
    assert_eq!(said.code, Some(78));
    assert_eq!(
        said.err.replace(&path, "/etc/fdpassd.toml"),
        format!("fdpassd: {shown}")
    );
}

/// Keys of the shipped configuration, with their sections as `[workers]count`, and what they are by default: nothing if it
/// has them as examples only. Those of a listener are told in the comment of `listen`.
fn shipped_keys() -> BTreeMap<String, String> {
    let nothing = tempfile::NamedTempFile::new().expect("a file");
    let dump = run(
        FDPASSD,
        &["-T", "-c", &nothing.path().display().to_string()],
    )
    .out;
    let is_unset = |section: &str, key: &str| {
        let (_, section) = dump
            .split_once(&format!("\n{section}\n"))
            .expect("every section is shown");
        section
            .lines()
            .take_while(|line| !line.starts_with('['))
            .any(|line| line.starts_with(&format!("#{key} is not set")))
    };
    let mut keys = BTreeMap::new();
    for line in read("config/fdpassd.toml").lines() {
        let of_listener = line.strip_prefix("#   ");
        let Some((key, value)) = of_listener
            .or_else(|| line.strip_prefix('#'))
            .and_then(|line| line.split_once(" = "))
        else {
            continue;
        };
        if key.contains(' ') {
            continue;
        }
        let value = if of_listener.is_some() {
            value.split(' ').next().unwrap_or_default()
        } else {
            value
        };
        let (key, default) = match key.split_once('.') {
            Some((section, key)) => {
                let section = format!("[{section}]");
                (
                    format!("{section}{key}"),
                    if is_unset(&section, key) { "" } else { value },
                )
            }
            None => (key.to_owned(), if value == "\"…\"" { "" } else { value }),
        };
        // The default comes first.
        keys.entry(key).or_insert_with(|| default.to_owned());
    }
    keys
}

/// `-c` and `--config` in a help text: where lines begin with them, behind a title or not.
fn options_of(help: &str) -> BTreeSet<String> {
    let lines = help
        .lines()
        .filter_map(line_of_help)
        .filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split("  ").next().unwrap_or_default().split(", "));
    words
        .filter_map(|option| option.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// The verbs that a help text lists, each with what it does two spaces behind.
fn verbs_of(help: &str) -> BTreeSet<String> {
    let lines = help.lines().filter_map(line_of_help);
    let words = lines
        .filter_map(|line| line.split_once("  "))
        .flat_map(|(verbs, _)| verbs.split(", "));
    let is_verb = |word: &&str| {
        word.starts_with(|letter: char| letter.is_ascii_lowercase())
            && word
                .chars()
                .all(|letter| letter.is_ascii_lowercase() || letter == '-')
    };
    words.filter(is_verb).map(str::to_owned).collect()
}

/// A line of a help text without its title, if it has one or is indented.
fn line_of_help(line: &str) -> Option<&str> {
    let is_title = line.starts_with(|letter: char| letter.is_ascii_uppercase());
    let rest = if is_title {
        line.split_once("  ")?.1
    } else {
        line.strip_prefix("  ")?
    };
    Some(rest.trim_start())
}

/// The labels of a sample whose values have no commas or quotes in them.
fn label_pairs(sample: &str) -> Vec<(&str, &str)> {
    let Some((_, labels)) = sample.split_once('{') else {
        return Vec::new();
    };
    let labels = labels.split_once('}').expect("a brace is closed").0;
    labels
        .split(',')
        .map(|pair| pair.split_once("=\"").expect("a label has a value"))
        .map(|(label, value)| (label, value.trim_end_matches('"')))
        .collect()
}

fn collect_members(value: &Value, members: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                members.insert(key.clone());
                collect_members(value, members);
            }
        }
        Value::Array(array) => array
            .iter()
            .for_each(|value| collect_members(value, members)),
        _ => {}
    }
}

/// Returns bold and underlined text as a terminal shows it.
fn without_overstrike(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars() {
        if letter == '\u{8}' {
            shown.pop();
        } else {
            shown.push(letter);
        }
    }
    shown
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

/// Those of lines such as `7b 7d   {}`, which are told twice; nothing if these are no such lines.
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

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}
