//! `hosts.toml`: groups of hosts, the control socket of each, and the ssh program.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::ctl::error::Error;
use crate::sys::{fd, process};
use crate::toml_text::{self, SourceText};

/// The longest file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The most hosts of one command: each has a process and a thread.
pub(super) const MAX_HOSTS: usize = 256;

/// The contents of the file, or the defaults if there is none.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HostsFile {
    /// The ssh program and its first arguments; empty is `ssh`.
    ssh: Vec<String>,
    /// The control socket of hosts without one of their own.
    socket: Option<PathBuf>,
    /// The hosts of each group.
    groups: BTreeMap<String, Vec<String>>,
    /// The settings of hosts.
    hosts: BTreeMap<String, Host>,
}

/// The settings of a host.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Host {
    socket: PathBuf,
}

impl HostsFile {
    /// Reads and checks the user's file, which need not exist.
    ///
    /// # Errors
    /// The first mistake in it; that it cannot be read, or that other users can write to it.
    pub(super) fn load(var: impl Fn(&str) -> Option<OsString>) -> Result<HostsFile, Error> {
        let Some(path) = path(var) else {
            return Ok(HostsFile::default());
        };
        let fail = |why: &dyn std::fmt::Display| {
            Error::Usage(format!("cannot use {}: {why}", path.display()))
        };
        // A link to nothing is a mistake.
        let is_missing = fs::symlink_metadata(&path).is_err_and(|error| {
            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        });
        if is_missing {
            return Ok(HostsFile::default());
        }
        let text = read(&path).map_err(|error| fail(&error))?;
        let origin = path.display().to_string();
        HostsFile::parse(&SourceText { origin, text }).map_err(|display| Error::BadHostsFile {
            path: path.clone(),
            display,
        })
    }

    fn parse(source: &SourceText) -> Result<HostsFile, String> {
        let file: HostsFile = toml_text::parse(source)?;
        file.check(|steps, why| toml_text::mistake_at(source, steps, &why))?;
        Ok(file)
    }

    /// Finds the first wrong value. `shown` makes the error of its keys and the reason.
    fn check(&self, shown: impl Fn(&[&str], String) -> String) -> Result<(), String> {
        if self.ssh.first().is_some_and(String::is_empty) {
            return Err(shown(&["ssh", "0"], "the program has no name".to_owned()));
        }
        if let Some(socket) = &self.socket {
            check_socket(socket).map_err(|why| shown(&["socket"], why))?;
        }
        for (group, members) in &self.groups {
            check_name(group).map_err(|why| shown(&["groups", group], why))?;
            for (index, member) in members.iter().enumerate() {
                match self.groups.contains_key(member) {
                    true => Err(format!("{member:?} is a group; a group contains hosts")),
                    false => check_name(member),
                }
                .map_err(|why| shown(&["groups", group, &index.to_string()], why))?;
            }
        }
        for (name, host) in &self.hosts {
            match self.groups.contains_key(name) {
                true => Err(format!("{name:?} is also a group")),
                false => check_name(name),
            }
            .map_err(|why| shown(&["hosts", name], why))?;
            check_socket(&host.socket).map_err(|why| shown(&["hosts", name, "socket"], why))?;
        }
        Ok(())
    }

    /// Returns the hosts of a list of groups and hosts, each once, in the order of the list.
    ///
    /// # Errors
    /// A name that cannot be a host, and a list without hosts.
    pub(super) fn expand(&self, list: &[String]) -> Result<Vec<String>, Error> {
        let mut hosts: Vec<String> = Vec::new();
        for name in list {
            let one = std::slice::from_ref(name);
            let names = self.groups.get(name).map_or(one, Vec::as_slice);
            for host in names {
                check_name(host).map_err(|why| Error::Usage(format!("--hosts: {why}")))?;
                if !hosts.contains(host) {
                    hosts.push(host.clone());
                }
            }
        }
        match hosts.len() {
            0 => Err(Error::Usage("--hosts: the list has no hosts".to_owned())),
            1..=MAX_HOSTS => Ok(hosts),
            count => Err(Error::Usage(format!(
                "--hosts: at most {MAX_HOSTS} hosts, these are {count}"
            ))),
        }
    }

    /// Returns the ssh program and its first arguments.
    pub(super) fn ssh(&self) -> Vec<String> {
        match self.ssh.is_empty() {
            true => vec!["ssh".to_owned()],
            false => self.ssh.clone(),
        }
    }

    /// Returns the control socket of a host as the file has it.
    pub(super) fn socket(&self, host: &str) -> Option<&Path> {
        let own = self.hosts.get(host).map(|host| &host.socket);
        own.or(self.socket.as_ref()).map(PathBuf::as_path)
    }
}

/// Returns the path of the file by the XDG Base Directory Specification, which ignores relative paths.
fn path(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |key| {
        var(key)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let directory =
        absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(directory.join("fdpassctl/hosts.toml"))
}

/// Reads the file. It names a program, so only root and the user may own it, and no other user may write to it.
fn read(path: &Path) -> io::Result<String> {
    let file = fd::open_at_once(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if !is_trusted(found.uid(), found.mode()) {
        return Err(io::Error::other(
            "another user owns it or can write to it, and it names a program",
        ));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_FILE {
        true => Err(io::Error::other(format!(
            "it has more than {MAX_FILE} bytes"
        ))),
        false => Ok(text),
    }
}

fn is_trusted(owner: u32, mode: u32) -> bool {
    [0, process::user()].contains(&owner) && mode & 0o022 == 0
}

/// Checks a destination for ssh(1): a name, `user@name` or `ssh://user@name:port`.
///
/// No part may begin with `-`, which programs take for an option. The user's `ProxyCommand`, which a shell runs, may
/// contain the name (ssh_config(5), TOKENS): of the characters that a shell interprets only `[` and `]` are accepted, which
/// an IPv6 address with a port needs.
fn check_name(name: &str) -> Result<(), String> {
    let destination = name.strip_prefix("ssh://").unwrap_or(name);
    let (user, host) = match destination.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, destination),
    };
    let is_meant =
        |c: char| c.is_whitespace() || c.is_control() || "'\"`$\\;&<>|(){}*?!,#~".contains(c);
    if host.is_empty() || user == Some("") {
        return Err(format!("{name:?} is not the name of a host"));
    }
    if name.starts_with('-')
        || host.starts_with('-')
        || user.is_some_and(|user| user.starts_with('-'))
    {
        return Err(format!(
            "{name:?} is not the name of a host: it begins with \"-\""
        ));
    }
    match destination.chars().find(|c| is_meant(*c)) {
        Some(c) => Err(format!(
            "{name:?} is not the name of a host: it contains {c:?}"
        )),
        None => Ok(()),
    }
}

/// Checks a path on another host, in which ssh(1) would replace variables.
pub(super) fn check_socket(path: &Path) -> Result<(), String> {
    let is_wrong = |c: char| c.is_control() || c == '$';
    match path.to_str() {
        Some(text) if path.is_absolute() && !text.contains(is_wrong) => Ok(()),
        _ => Err(
            "the path of a socket on another host must be absolute UTF-8 without \"$\" or control characters"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn parse(text: &str) -> Result<HostsFile, String> {
        HostsFile::parse(&SourceText {
            origin: "hosts.toml".to_owned(),
            text: text.to_owned(),
        })
    }

    fn expanded(file: &HostsFile, list: &[&str]) -> Result<Vec<String>, String> {
        let list: Vec<String> = list.iter().map(|name| (*name).to_owned()).collect();
        file.expand(&list).map_err(|error| error.to_string())
    }

    #[test]
    fn groups_are_expanded_and_each_host_is_there_once() {
        let text =
            "socket = \"/x\"\ngroups.web = [\"a\", \"root@b.example\"]\nhosts.a.socket = \"/y\"";
        let file = parse(text).expect("it is valid");
        let hosts = expanded(&file, &["c", "web", "a", "c"]).expect("hosts");
        assert_eq!(hosts, ["c", "a", "root@b.example"]);
        assert_eq!(file.socket("a"), Some(Path::new("/y")));
        assert_eq!(file.socket("c"), Some(Path::new("/x")));
        assert_eq!(file.ssh(), ["ssh"]);
        assert_eq!(
            expanded(&HostsFile::default(), &["web"]),
            Ok(vec!["web".to_owned()])
        );
        for (list, words) in [
            (&[][..], "the list has no hosts"),
            (&["a", ""], "\"\" is not the name of a host"),
        ] {
            let said = expanded(&file, list).expect_err(words);
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn a_name_is_no_option_and_nothing_for_a_shell() {
        for name in [
            "a",
            "root@a",
            "fe80::1%eth0",
            "ssh://root@a:22",
            "ssh://[::1]:22",
            "web_1.example",
        ] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in [
            "-oProxyCommand=x",
            "root@-x",
            "-x@a",
            "ssh://-x",
            "",
            "root@",
            "@a",
            "ssh://",
            "a b",
            "a\n",
            "$(x)",
            "a;x",
            "a`x`",
            "~a",
        ] {
            check_name(name).expect_err(name);
        }
    }

    #[test]
    fn mistakes_are_shown_at_their_place() {
        for (text, words, place) in [
            ("grops = {}", "unknown key `grops`", "1:1"),
            ("[hosts.a]\nport = 1", "unknown key `port`", "2:1"),
            (
                "[groups]\nall = [\"web\"]\nweb = [\"a\"]",
                "\"web\" is a group",
                "2:8",
            ),
            (
                "[groups]\nweb = [\"a\", \"-x\"]",
                "it begins with \"-\"",
                "2:13",
            ),
            ("groups.\"a b\" = []", "it contains ' '", "1:8"),
            (
                "groups.a = []\nhosts.a.socket = \"/x\"",
                "\"a\" is also a group",
                "2:7",
            ),
            ("[hosts.\"a.b\"]\nsocket = \"x\"", "absolute", "2:1"),
            ("socket = \"/run/$x\"", "without \"$\"", "1:1"),
            ("ssh = [\"\"]", "the program has no name", "1:8"),
            ("ssh = ssh", "`ssh` is not in quotes", "1:7"),
            ("groups = []", "expected a table", "1:10"),
            ("hosts.a = \"/x\"", "expected a table", "1:11"),
        ] {
            let shown = parse(text).expect_err(text);
            assert!(shown.contains(words), "{shown}");
            assert!(
                shown.contains(&format!("--> hosts.toml:{place}\n")),
                "{shown}"
            );
            assert!(shown.contains('^'), "{shown}");
        }
    }

    #[test]
    fn the_file_is_in_the_configuration_directory_of_the_user() {
        let path_with = |vars: &[(&str, &str)]| {
            let var = |key: &str| {
                let found = vars.iter().find(|(name, _)| *name == key);
                found.map(|(_, value)| OsString::from(value))
            };
            path(var).map(|path| path.display().to_string())
        };
        for (vars, expected) in [
            (
                &[("XDG_CONFIG_HOME", "/c"), ("HOME", "/h")][..],
                Some("/c/fdpassctl/hosts.toml"),
            ),
            (
                &[("XDG_CONFIG_HOME", "c"), ("HOME", "/h")],
                Some("/h/.config/fdpassctl/hosts.toml"),
            ),
            (&[("HOME", "/h")], Some("/h/.config/fdpassctl/hosts.toml")),
            (&[("HOME", "")], None),
        ] {
            assert_eq!(path_with(vars).as_deref(), expected);
        }
    }

    #[test]
    fn a_link_to_nothing_is_no_missing_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let load = |home: &Path| {
            let var = |key: &str| (key == "HOME").then(|| home.into());
            HostsFile::load(var).map(drop)
        };
        load(directory.path()).expect("there is no file");
        load(Path::new("/dev/null")).expect("there is no directory");
        let of_file = directory.path().join(".config/fdpassctl");
        fs::create_dir_all(&of_file).expect("it is ours");
        symlink("nothing", of_file.join("hosts.toml")).expect("it is ours");
        let error = load(directory.path()).expect_err("it is a link to nothing");
        assert!(error.to_string().contains("No such file"), "{error}");
    }

    #[test]
    fn a_list_has_at_most_256_hosts() {
        let members: Vec<String> = (0..257).map(|number| format!("\"h{number}\"")).collect();
        let file = format!("groups.all = [{}]", members.join(", "));
        let file = parse(&file).expect("the file may have more");
        let most: Vec<String> = (0..256).map(|number| format!("h{number}")).collect();
        assert_eq!(file.expand(&most).expect("these are few enough"), most);
        let error = expanded(&file, &["all"]).expect_err("one too many");
        assert!(
            error.contains("at most 256 hosts, these are 257"),
            "{error}"
        );
    }

    #[test]
    fn a_file_has_at_most_a_mebibyte() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("hosts.toml");
        let most = "#".repeat(1 << 20);
        fs::write(&path, &most).expect("it is ours");
        assert_eq!(read(&path).expect("it is short enough"), most);
        fs::write(&path, most + "#").expect("it is ours");
        let error = read(&path).expect_err("one byte too many");
        assert_eq!(error.to_string(), "it has more than 1048576 bytes");
    }

    #[test]
    fn a_file_of_another_user_is_not_used() {
        assert!(is_trusted(process::user(), 0o100_644));
        assert!(is_trusted(0, 0o100_644));
        assert!(!is_trusted(process::user() + 1, 0o100_644));
    }

    #[test]
    fn a_file_that_others_can_write_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("hosts.toml");
        fs::write(&path, "").expect("it is ours");
        for (mode, is_used) in [(0o600, true), (0o644, true), (0o664, false), (0o646, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
            assert_eq!(read(&path).is_ok(), is_used, "{mode:o}");
        }
        assert!(read(directory.path()).is_err());
    }
}
