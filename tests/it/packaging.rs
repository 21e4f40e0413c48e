//! The files for systemd and Debian's tools; tests/systemd/run tests their effect.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::faulty::example;
use crate::common::needs::skip;
use crate::common::program::run;
use crate::common::{FDPASSD, read, root};

#[test]
fn the_unit_has_what_the_daemon_relies_on() {
    let unit = unit("fdpassd.service");
    for (key, value) in [
        ("Type", "notify"),
        ("ExecStart", "/usr/sbin/fdpassd -c /etc/fdpassd.toml"),
        ("ExecReload", "/usr/bin/fdpassctl reload"),
        ("Restart", "on-failure"),
        ("RestartSec", "50ms"),
        ("StartLimitIntervalSec", "60"),
        ("StartLimitBurst", "60"),
        ("RestartPreventExitStatus", "64 69 77 78"),
        ("WatchdogSignal", "SIGTERM"),
        ("KillMode", "control-group"),
        ("OOMPolicy", "continue"),
        ("RuntimeDirectory", "fdpassd"),
        ("RuntimeDirectoryMode", "0755"),
        ("RuntimeDirectoryPreserve", "restart"),
        ("User", "fdpassd"),
        ("CapabilityBoundingSet", ""),
        ("NoNewPrivileges", "yes"),
    ] {
        assert_eq!(values(&unit, key), [value], "{key}");
    }
    for key in [
        "WatchdogSec",
        "FileDescriptorStoreMax",
        "LimitNOFILE",
        "WantedBy",
    ] {
        assert_eq!(values(&unit, key).len(), 1, "{key}");
    }
    // Only the master notifies the manager, and it must see the user of each control client.
    assert!(values(&unit, "NotifyAccess").is_empty() && values(&unit, "PrivateUsers").is_empty());
    assert_eq!(
        read("packaging/sysusers.d/fdpassd.conf")
            .split_whitespace()
            .take(2)
            .collect::<Vec<_>>(),
        ["u", "fdpassd"]
    );
}

#[test]
fn an_instance_is_the_same_with_names_of_its_own() {
    let own = read("packaging/systemd/fdpassd.service")
        .replace(
            "outlive its workers\n",
            "outlive its workers, instance %i\n",
        )
        .replace("/etc/fdpassd.toml", "/etc/fdpassd/%i.toml")
        .replace("fdpassctl reload", "fdpassctl -i %i reload")
        .replace("fdpassctl stop", "fdpassctl -i %i stop")
        .replace(
            "RuntimeDirectory=fdpassd\n",
            "RuntimeDirectory=fdpassd-%i\n",
        );
    assert_eq!(read("packaging/systemd/fdpassd@.service"), own);
}

#[test]
fn the_socket_of_an_instance_is_the_same_at_a_path_of_its_own() {
    let own = read("packaging/systemd/fdpassd.socket")
        .replace("of fdpassd\n", "of fdpassd, instance %i\n")
        .replace("The daemon serves", "The instance serves")
        .replace(
            "configuration has",
            "configuration, /etc/fdpassd/%i.toml, has",
        )
        .replace("fdpassd.service\n", "fdpassd@%i.service\n")
        .replace("=127.0.0.1:8080", "=/run/fdpassd-%i.sock");
    let instance = read("packaging/systemd/fdpassd@.socket");
    let is_same = |line: &&str| !line.starts_with("Socket") && !line.starts_with("# For a TCP");
    assert_eq!(
        instance.lines().filter(is_same).collect::<Vec<_>>(),
        own.lines().collect::<Vec<_>>()
    );
}

#[test]
fn the_template_for_other_daemons_is_the_same_with_their_name() {
    let own = read("packaging/systemd/fdpassd.service")
        .replace(
            "Documentation=man:fdpassd(8) man:fdpassctl(8) man:fdpassd.toml(5)\n",
            "",
        )
        .replace("RPC daemon whose", "Counter whose")
        .replace("fdpassctl", "counterctl")
        .replace("fdpassd", "counterd");
    let with_state = read("packaging/counterd/counterd.service");
    let is_same = |line: &&str| !line.contains("StateDirectory") && !line.contains("STATE_");
    assert_eq!(
        with_state.lines().filter(is_same).collect::<Vec<_>>(),
        own.lines().collect::<Vec<_>>()
    );
}

/// Both packages contain what this script installs.
#[test]
fn packages_have_each_file_and_those_that_documents_name() {
    let own = tempfile::tempdir().expect("a directory");
    let binaries = Path::new(FDPASSD).parent().expect("it is in a directory");
    let script = root().join("packaging/install-files");
    let said = run(script, &[&path_text(binaries), &path_text(own.path())]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    for (directory, installed) in [
        ("packaging/systemd", "usr/lib/systemd/system"),
        (
            "packaging/systemd/drop-ins",
            "usr/share/doc/fdpassd/examples",
        ),
        ("packaging/monitoring", "usr/share/fdpassd/monitoring"),
        ("packaging/sysusers.d", "usr/lib/sysusers.d"),
    ] {
        let names = names_of_files(&root().join(directory));
        assert_eq!(names_of_files(&own.path().join(installed)), names);
    }
    for page in names_of_files(&root().join("man")) {
        let (_, section) = page.rsplit_once('.').expect("NAME.SECTION");
        let page = format!("usr/share/man/man{section}/{page}");
        assert!(own.path().join(&page).is_file(), "{page}");
    }
    for (path, mode) in [
        ("usr/sbin/fdpassd", 0o755),
        ("usr/bin/fdpassctl", 0o755),
        ("etc/fdpassd", 0o755),
        ("etc/fdpassd.d", 0o755),
        ("etc/fdpassd.toml", 0o644),
        ("etc/logrotate.d/fdpassd", 0o644),
    ] {
        let found = fs::metadata(own.path().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
    }
    let guides = names_of_files(&root().join("docs")).into_iter();
    // Measurements are not for operators.
    let guides = guides.filter(|name| name.ends_with(".md") && name != "models.md");
    let guides: Vec<String> = guides.map(|name| format!("docs/{name}")).collect();
    for guide in &guides {
        let guide = guide.replace("docs/", "usr/share/doc/fdpassd/");
        assert!(own.path().join(&guide).is_file(), "{guide}");
    }
    let pages = names_of_files(&root().join("man")).into_iter();
    let pages = pages.map(|name| format!("man/{name}"));
    let texts = guides
        .into_iter()
        .chain(pages)
        .chain(["README.md".to_owned()]);
    let mut named = 0;
    for text in texts {
        for rest in read(&text).split("/usr/share/").skip(1) {
            let is_of_path = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            let end = rest.find(|c| !is_of_path(c)).unwrap_or(rest.len());
            let path = rest[..end].trim_end_matches(['.', '/']);
            if path.starts_with("fdpassd") || path.starts_with("doc/fdpassd") {
                let exists = own.path().join("usr/share").join(path).exists();
                assert!(exists, "{text} names {path}");
                named += 1;
            }
        }
    }
    assert!(named > 0, "documents name files of the package");
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

fn names_of_files(directory: &Path) -> BTreeSet<String> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let entries = entries.map(|entry| entry.expect("it can be read").path());
    let files = entries.filter(|path| path.is_file());
    let name = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    files.filter_map(|path| name(&path)).collect()
}

#[test]
fn the_example_of_a_package_can_be_built() {
    if !Path::new("/usr/bin/dpkg-deb").exists() {
        return skip("dpkg-deb", "there is no dpkg-deb");
    }
    let target = tempfile::tempdir().expect("a directory");
    let binaries = example("counterd");
    let binaries = binaries.parent().expect("examples are in a directory");
    let built = Command::new(root().join("packaging/counterd/build-deb"))
        .arg(binaries)
        .env("CARGO_TARGET_DIR", target.path())
        // Half a minute for a program with debug information otherwise.
        .env("DPKG_DEB_COMPRESSOR_LEVEL", "0")
        .output()
        .expect("it runs");
    let error = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{error}");
    let path = String::from_utf8_lossy(&built.stdout);
    let tree = target.path().join("tree");
    let tree = tree.to_str().expect("it is UTF-8");
    let unpacked = run("/usr/bin/dpkg-deb", &["--raw-extract", path.trim(), tree]);
    assert_eq!(unpacked.code, Some(0), "{unpacked:?}");
    let tested = run(
        format!("{tree}/usr/sbin/counterd"),
        &["-t", "-c", &format!("{tree}/etc/counterd.toml")],
    );
    assert_eq!(tested.code, Some(0), "{tested:?}");
    let help = run(format!("{tree}/usr/bin/counterctl"), &["--help"]).out;
    assert!(help.starts_with("Usage: counterctl "), "{help}");
    for script in ["preinst", "postinst", "prerm", "postrm"] {
        let checked = run("/bin/sh", &["-n", &format!("{tree}/DEBIAN/{script}")]);
        assert_eq!(checked.code, Some(0), "{checked:?}");
    }
    assert_scripts_enable_the_unit(&format!("{tree}/DEBIAN"));
}

/// As dpkg(1) calls the scripts: an installation enables the unit, also after a removal, and an upgrade leaves it as it
/// is.
fn assert_scripts_enable_the_unit(scripts: &str) {
    let own = tempfile::tempdir().expect("a directory");
    let run_directory = own.path().display().to_string();
    fs::create_dir_all(own.path().join("systemd/system")).expect("it is ours");
    let has_enabled = |steps: &[(&str, &[&str])]| {
        let mut calls = String::new();
        for (script, arguments) in steps {
            let text = fs::read_to_string(format!("{scripts}/{script}")).expect("it exists");
            let text = text.replace("/run/", &format!("{run_directory}/"));
            let text = format!("systemctl() {{ echo $1; }}\nalias systemd-sysusers=:\n{text}");
            let said = run("/bin/sh", &[&["-c", &text, script], *arguments].concat());
            assert_eq!(said.code, Some(0), "{said:?}");
            calls.push_str(&said.out);
        }
        calls.contains("enable")
    };
    let installation: [(&str, &[&str]); 2] =
        [("preinst", &["install"]), ("postinst", &["configure", ""])];
    assert!(has_enabled(&installation));
    let upgrade: [(&str, &[&str]); 2] = [
        ("preinst", &["upgrade", "0.1.0"]),
        ("postinst", &["configure", "0.1.0"]),
    ];
    assert!(!has_enabled(&upgrade));
    let again: [(&str, &[&str]); 2] = [
        ("preinst", &["install", "0.1.0"]),
        ("postinst", &["configure", "0.1.0"]),
    ];
    assert!(has_enabled(&again));
    assert!(!has_enabled(&upgrade));
}

/// Returns the exposure of a unit as systemd-analyze(1) computes it, and the settings that contribute to it.
fn exposure(text: &str) -> (f64, BTreeSet<String>) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("unit.service");
    fs::write(&path, text).expect("it is our directory");
    let analyze = |more: &[&str]| {
        let path = path.to_string_lossy();
        let arguments = ["security", "--offline=true", "--no-pager", &path];
        run("/usr/bin/systemd-analyze", &[&arguments, more].concat())
    };
    let said = analyze(&[]);
    let level = said.out.split("exposure level for ").nth(1);
    let level = level.and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let level = level.unwrap_or_else(|| panic!("{said:?}"));
    let table = analyze(&["--json=short"]).out;
    let table: Vec<Value> = serde_json::from_str(&table).expect("an array");
    let exposed = table.iter().filter(|row| !row["exposure"].is_null());
    let name = |row: &Value| row["name"].as_str().expect("a name").to_owned();
    (level, exposed.map(name).collect())
}

#[test]
fn the_exposure_of_the_unit_is_low() {
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        return skip("systemd-analyze", "there is no systemd-analyze");
    }
    let unit = read("packaging/systemd/fdpassd.service");
    let (level, exposed) = exposure(&unit);
    assert!(level <= 1.2, "{level}: {exposed:?}");
    let with = |drop_in| read(&format!("packaging/systemd/drop-ins/{drop_in}"));
    let (level, with_private) = exposure(&(unit.clone() + &with("private-network.conf")));
    assert!(level <= 0.5, "{level}: {with_private:?}");
    // 1.4 without ProtectControlGroups=no, which Delegate= needs, as the daemon creates cgroups. Without any other of
    // its settings, it stays 1.5.
    let (level, with_apps) = exposure(&(unit + &with("apps.conf")));
    assert!(level <= 1.5, "{level}: {with_apps:?}");
    let opened: Vec<&str> = with_apps.difference(&exposed).map(String::as_str).collect();
    let needed = [
        "Delegate=",
        "MemoryDenyWriteExecute=",
        "ProtectControlGroups=",
        "ProtectHome=",
    ];
    assert_eq!(opened, needed, "the drop-in opens nothing else");
}

#[test]
fn the_packages_are_of_this_version() {
    let changelog = read("packaging/debian/changelog");
    let version = changelog
        .split(['(', ')'])
        .nth(1)
        .expect("it begins with: fdpassd (VERSION)");
    let (upstream, _revision) = version.rsplit_once('-').expect("UPSTREAM-REVISION");
    assert_eq!(upstream, env!("CARGO_PKG_VERSION"));
    let spec = read("packaging/rpm/fdpassd.spec");
    assert!(spec.contains(&format!("\nVersion: {upstream}\nRelease: 1\n")));
    assert!(spec.contains(&format!(" - {upstream}-1\n")), "%changelog");
}

#[test]
fn scripts_can_be_run() {
    for script in [
        "packaging/build-deb",
        "packaging/build-rpm",
        "packaging/container/build-rootfs",
        "packaging/counterd/build-deb",
        "packaging/debian/rules",
        "packaging/install-files",
        "tests/apps/run",
        "tests/container/run",
        "tests/fleet/run",
        "tests/kubernetes/run",
        "tests/rpm/run",
        "tests/systemd/run",
        "tests/systemd/lab",
    ] {
        let found = fs::metadata(root().join(script)).unwrap_or_else(|e| panic!("{script}: {e}"));
        assert_eq!(found.permissions().mode() & 0o111, 0o111, "{script}");
    }
}

/// Returns the keys and values of a unit.
fn unit(name: &str) -> Vec<(String, String)> {
    let text = read(&format!("packaging/systemd/{name}"));
    let lines = text
        .lines()
        .filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    lines
        .map(|line| line.split_once('=').expect("KEY=VALUE"))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

fn values<'u>(unit: &'u [(String, String)], key: &str) -> Vec<&'u str> {
    unit.iter()
        .filter(|(found, _)| found == key)
        .map(|(_, value)| value.as_str())
        .collect()
}
