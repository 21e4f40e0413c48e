//! The replies of the daemon: verbs, events, codes, metrics, members and tables.

use std::collections::{BTreeMap, BTreeSet};

use fdpassd::proto::control::{Kind, RefusalCode, Verb};
use fdpassd::proto::rpc::Code;
use serde_json::{Value, json};

use crate::common::page::Page;
use crate::common::program::ctl;
use crate::common::{faulty, metrics, read, start};

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
    let text = metrics::text(&daemon);
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

    for file in [
        "docs/operating.md",
        "docs/kubernetes.md",
        "packaging/kubernetes/horizontalpodautoscaler.yaml",
    ] {
        let guide = read(file);
        for name in guide.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')) {
            let family = ["_bucket", "_count", "_sum"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(name);
            let is_metric = !name.starts_with("fdpassd_")
                || labels.contains_key(name)
                || labels.contains_key(family);
            assert!(is_metric, "{file} tells of {name}, which there is not");
        }
    }
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
    let mut columns: BTreeSet<String> = clients
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    // It is there while a request executes, as a unit test of the table shows.
    assert!(columns.insert("METHOD".to_owned()));
    assert_eq!(page.section("CLIENTS").words("Cm"), columns, "{clients}");
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
