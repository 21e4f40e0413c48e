//! A real sshd(8) on loopback, which stands for all hosts: each is a name in the configuration of ssh.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fdpassd::testing::{Running, eventually};
use tempfile::TempDir;

use crate::common::kernel;
use crate::common::needs::skip;
use crate::common::port::Reserved;
use crate::common::program::{FDPASSCTL, Program, Said, control_socket, run};

/// A user of the hosts besides that of the test: name, number, and the number of the only group.
pub type Account = (&'static str, u32, u32);

/// The server, and the files of a user of fdpassctl.
#[derive(Debug)]
pub struct Lab {
    _sshd: Program,
    address: SocketAddr,
    _port: Reserved,
    directory: TempDir,
    hosts: BTreeMap<String, PathBuf>,
    /// More of `ssh_config` and of `hosts.toml`.
    ssh_config: String,
    hosts_file: String,
}

impl Lab {
    /// Skips the test without an sshd.
    pub fn start() -> Option<Lab> {
        Lab::with_users(&[])
    }

    /// Skips the test also where no user can be added to the server's view of the system, unless none is wanted.
    pub fn with_users(users: &[Account]) -> Option<Lab> {
        if let Some(missing) = ["ssh", "ssh-keygen", SSHD]
            .iter()
            .find(|name| !is_there(name))
        {
            skip("sshd", &format!("there is no {missing}"));
            return None;
        }
        let is_root = kernel::user() == 0;
        if is_root && !can_mount() {
            skip(
                "namespaces",
                "sshd needs /run/sshd, and no mount can be made",
            );
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        // The server reads the keys as the user that logs in.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("it is ours");
        let port = Reserved::new();
        write_server_files(directory.path(), port.address, users);
        let server = directory.path().join("sshd_config");
        let mut command = match is_root {
            // Its own /run and its own users, which end with it.
            true => {
                let mut command = Command::new("unshare");
                command
                    .args(["--mount", "sh", "-c", MOUNTS])
                    .arg(directory.path());
                command.arg(SSHD);
                command
            }
            false => Command::new(SSHD),
        };
        let log = directory.path().join("sshd.log");
        let sshd = Program::start(command.args(["-D", "-f"]).arg(server).arg("-E").arg(log));
        eventually("sshd listens", || TcpStream::connect(port.address).ok());
        let tmp = directory.path().join("tmp");
        fs::create_dir(tmp).expect("it is ours");
        Some(Lab {
            _sshd: sshd,
            address: port.address,
            _port: port,
            directory,
            hosts: BTreeMap::new(),
            ssh_config: String::new(),
            hosts_file: String::new(),
        })
    }

    /// Adds a host on which this daemon runs.
    pub fn daemon(&mut self, name: &str, daemon: &Running) {
        self.socket(name, &control_socket(daemon));
    }

    /// Adds a host with this control socket.
    pub fn socket(&mut self, name: &str, socket: &Path) {
        self.hosts.insert(name.to_owned(), socket.to_owned());
    }

    /// Adds lines to the configuration of ssh, before the usual ones: ssh uses the first value.
    pub fn ssh_config(&mut self, lines: &str) {
        self.ssh_config.push_str(lines);
    }

    /// Adds lines to `hosts.toml`.
    pub fn hosts_file(&mut self, lines: &str) {
        self.hosts_file.push_str(lines);
    }

    /// The directory in which fdpassctl creates its own.
    pub fn tmp(&self) -> PathBuf {
        self.directory.path().join("tmp")
    }

    /// Returns fdpassctl with these arguments, and waits long for a busy machine.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.write_user_files();
        // A shell makes programs in its background ignore SIGINT.
        let mut command = Command::new("env");
        command
            .args(["--default-signal", FDPASSCTL])
            .args(arguments)
            .env("XDG_CONFIG_HOME", self.directory.path())
            .env("TMPDIR", self.tmp())
            .env_remove("FDPASSD_SOCKET");
        if !arguments.contains(&"--timeout") {
            command.args(["--timeout", "60s"]);
        }
        command
    }

    /// Runs fdpassctl with these arguments. Afterwards its directory is gone.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> Said {
        let said = Program::start(&mut self.command(arguments)).finish();
        assert_eq!(self.files_of_ctl(), [""; 0], "{said:?}");
        said
    }

    /// Returns what fdpassctl has in its directory of temporary files.
    pub fn files_of_ctl(&self) -> Vec<String> {
        let entries = fs::read_dir(self.tmp()).expect("it is ours");
        entries
            .map(|entry| {
                entry
                    .expect("it is ours")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }

    fn write_user_files(&self) {
        let path = self.directory.path();
        let SocketAddr::V4(address) = self.address else {
            panic!("it is 127.0.0.1")
        };
        let ssh_config = format!(
            "{}Host *\nHostName {}\nPort {}\nHostKeyAlias lab\nIdentityFile {}\nIdentitiesOnly yes\n\
             UserKnownHostsFile {}\nGlobalKnownHostsFile none\nStrictHostKeyChecking yes\n",
            self.ssh_config,
            address.ip(),
            address.port(),
            path.join("user").display(),
            path.join("known_hosts").display()
        );
        fs::write(path.join("ssh_config"), ssh_config).expect("it is ours");
        let config = path.join("ssh_config");
        let mut text = format!("ssh = [\"ssh\", \"-F\", {config:?}]\n{}", self.hosts_file);
        for (name, socket) in &self.hosts {
            let _ = writeln!(text, "[hosts.{name}]\nsocket = {socket:?}");
        }
        fs::create_dir_all(path.join("fdpassctl")).expect("it is ours");
        fs::write(path.join("fdpassctl/hosts.toml"), text).expect("it is ours");
    }
}

/// Writes the keys, the configuration of the server, and its users.
fn write_server_files(path: &Path, address: SocketAddr, users: &[Account]) {
    for key in ["host", "user"] {
        let file = path.join(key);
        let file = file.to_str().expect("UTF-8");
        let said = run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", file]);
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let read = |name: &str| fs::read_to_string(path.join(name)).expect("it is ours");
    let write = |name: &str, text: String| fs::write(path.join(name), text).expect("it is ours");
    write("known_hosts", format!("lab {}", read("host.pub")));
    let shown = path.display();
    write(
        "sshd_config",
        format!(
            "ListenAddress {}\nPort {}\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/user.pub\n\
             StrictModes no\nUsePAM no\nPidFile none\nMaxStartups 100\nPermitRootLogin prohibit-password\n",
            address.ip(),
            address.port()
        ),
    );
    let [mut passwd, mut group] = ["/etc/passwd", "/etc/group"]
        .map(|file| fs::read_to_string(file).expect("every user can read it"));
    if !passwd.lines().any(|line| line.starts_with("sshd:")) {
        passwd.push_str("sshd:*:61190:61190::/:/bin/false\n");
    }
    for (name, uid, gid) in users {
        let _ = writeln!(passwd, "{name}:*:{uid}:{gid}::/:/bin/sh");
        let _ = writeln!(group, "{name}:x:{gid}:");
    }
    write("passwd", passwd);
    write("group", group);
}

/// Mounts the files of root's server: the first argument is their directory, the others are a command.
const MOUNTS: &str = "mount -t tmpfs none /run && mkdir /run/sshd \
     && mount --bind \"$0/passwd\" /etc/passwd && mount --bind \"$0/group\" /etc/group && exec \"$@\"";

/// sshd must be started by an absolute path.
const SSHD: &str = "/usr/sbin/sshd";

fn is_there(program: &&str) -> bool {
    let mut command = Command::new("sh");
    let found = command.args(["-c", "command -v \"$0\"", program]).output();
    found.expect("there is a shell").status.success()
}

fn can_mount() -> bool {
    let mut command = Command::new("unshare");
    let tried = command
        .args(["--mount", "mount", "-t", "tmpfs", "none", "/run"])
        .output();
    tried.is_ok_and(|output| output.status.success())
}
