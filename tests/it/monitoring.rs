//! The rules for Prometheus and the dashboard for Grafana: valid, tested, and of metrics that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::common::needs::skip;
use crate::common::program::run;
use crate::common::{metrics, read, root, start};

const RULES: &str = "packaging/monitoring/fdpassd.rules.yml";
const TESTS: &str = "tests/monitoring/rules.test.yml";
const DASHBOARD: &str = "packaging/monitoring/fdpassd-dashboard.json";

fn has_promtool() -> bool {
    let is_there = Command::new("promtool").arg("--version").output().is_ok();
    if !is_there {
        skip(
            "promtool",
            "there is no promtool (Debian's package prometheus)",
        );
    }
    is_there
}

/// Runs promtool with a file of the repository.
#[track_caller]
fn promtool(words: [&str; 2], file: &str) {
    let path = root().join(file).display().to_string();
    let said = run("promtool", &[words[0], words[1], &path]);
    assert_eq!(said.code, Some(0), "{file}\n{}{}", said.out, said.err);
}

/// Returns the words after `key` in a file, one a line.
fn values(file: &str, key: &str) -> BTreeSet<String> {
    let text = read(file);
    let lines = text.lines().map(|line| line.trim_start_matches(['-', ' ']));
    let found: BTreeSet<String> = lines
        .filter_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()))
        .collect();
    assert!(found.len() > 3, "{file}: {key} {found:?}");
    found
}

#[test]
fn the_rules_are_valid_and_fire_when_they_should() {
    if has_promtool() {
        promtool(["check", "rules"], RULES);
        promtool(["test", "rules"], TESTS);
    }
}

#[test]
fn each_alert_is_tested_and_is_in_the_guide() {
    let alerts = values(RULES, "alert: ");
    assert_eq!(values(TESTS, "alertname: "), alerts);
    let guide = read("docs/operating.md");
    let (_, section) = guide
        .split_once("## What to alert on\n")
        .expect("it has the section");
    let (section, _) = section.split_once("\n## ").expect("it ends");
    let rows = section.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `")?.split_once('`')?;
        Some(name.to_owned())
    });
    assert_eq!(rows.collect::<BTreeSet<_>>(), alerts);
    let recorded = values(RULES, "record: ");
    let tested = values(TESTS, "expr: ");
    assert_eq!(tested, recorded);
}

/// Returns the expressions of the dashboard, with values for its variables.
fn expressions() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            Value::Object(members) => {
                for (key, value) in members {
                    match value {
                        Value::String(text) if key == "expr" || key == "definition" => {
                            found.push(text.clone());
                        }
                        _ => collect(value, found),
                    }
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&dashboard(), &mut found);
    let plain = |text: String| {
        let text = text
            .replace("$__rate_interval", "5m")
            .replace("$__range", "6h");
        text.replace("$job", "fdpassd").replace("$instance", ".*")
    };
    let found: Vec<String> = found.into_iter().map(plain).collect();
    assert!(found.len() > 20, "{found:?}");
    found
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).expect("it is JSON")
}

#[test]
fn rules_and_dashboard_have_metrics_and_values_that_exist() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    daemon.call("ping", 1).expect("a pong");
    let text = metrics::text(&daemon);
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, _) = line.split_once(['{', ' ']).expect("a sample");
        labels.entry(name).or_default().insert(line);
    }
    let recorded: BTreeSet<String> = values(RULES, "record: ");
    let rules = read(RULES);
    let without_comments = rules.lines().filter(|line| !line.starts_with('#'));
    let without_comments: Vec<&str> = without_comments.collect();
    let mut texts = vec![without_comments.join("\n")];
    texts.extend(expressions());
    let mut seen = BTreeSet::new();
    for mut text in texts {
        recorded
            .iter()
            .for_each(|name| text = text.replace(name.as_str(), "recorded"));
        for (at, _) in text.match_indices("fdpassd_") {
            let rest = &text[at..];
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
            let name = &rest[..end];
            let samples = labels
                .get(name)
                .unwrap_or_else(|| panic!("there is no {name}: {text}"));
            seen.insert(name.to_owned());
            // Only exact matches are of values that must be there.
            let matchers = rest[end..].strip_prefix('{').unwrap_or_default();
            let matchers = matchers.split('}').next().unwrap_or_default();
            for matcher in matchers.split(',').filter(|m| m.contains("=\"")) {
                let (label, _) = matcher.split_once('=').expect("it was there");
                let matcher = matcher.replace("!=", "=");
                let is_there = samples.iter().any(|sample| sample.contains(&*matcher));
                assert!(
                    is_there || label == "job",
                    "{name}{{{matcher}}}: {samples:?}"
                );
            }
        }
    }
    assert!(seen.len() > 25, "{seen:?}");
}

#[test]
fn the_expressions_of_the_dashboard_are_valid() {
    if !has_promtool() {
        return;
    }
    let queries = expressions();
    let queries = queries
        .iter()
        .filter(|query| !query.starts_with("label_values("));
    let rules: String = queries
        .enumerate()
        .map(|(number, query)| format!("      - record: query{number}\n        expr: {query:?}\n"))
        .collect();
    let file = tempfile::Builder::new()
        .suffix(".yml")
        .tempfile()
        .expect("a file");
    let text = format!("groups:\n  - name: dashboard\n    rules:\n{rules}");
    fs::write(file.path(), text).expect("it is our file");
    let said = run(
        "promtool",
        &["check", "rules", &file.path().display().to_string()],
    );
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
}

#[test]
fn each_panel_has_a_title_and_a_place_of_its_own() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("there are panels");
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}");
        let [x, y, w, h] =
            ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().expect("a place"));
        assert!(x + w <= 24, "{title}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{title} is above another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some(), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().expect("it has queries");
        let names: BTreeSet<&str> = targets.iter().filter_map(|t| t["refId"].as_str()).collect();
        assert_eq!(names.len(), targets.len(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}

#[test]
fn the_guide_names_the_rules_and_the_dashboard_of_the_package() {
    let guide = read("docs/operating.md");
    for file in [RULES, DASHBOARD] {
        let name = file.rsplit('/').next().expect("a name");
        let path = format!("/usr/share/fdpassd/monitoring/{name}");
        assert!(guide.contains(&path), "{path}");
    }
}
