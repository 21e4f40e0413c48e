//! `--hosts`: one verb on many hosts.
//!
//! Each host has a tunnel of its own, and the verb is performed through it as on this host, with all its options. The
//! results are one table, or one line of JSON for each host.

mod change;
mod clients;
mod directory;
mod file;
mod report;
mod status;

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::args::watching::StatusArguments;
use super::args::{Arguments, ChangeVerb, ClientsArguments, CtlVerb};
use super::error::Error;
use super::session::{Session, place_of_instance};
use super::tunnel::{Route, Tunnel};
use crate::proto::names::MAX_UNIX_PATH;
use directory::PrivateDirectory;
use file::{HostsFile, MAX_HOSTS, check_socket};

/// Performs a verb on the hosts of `--hosts`. `session` has the settings for all of them.
pub(super) fn perform(
    arguments: &Arguments,
    session: &Session,
    var: impl Fn(&str) -> Option<OsString>,
    out: &mut impl Write,
    err: &mut (impl Write + Send),
) -> Result<(), Error> {
    let verb = FleetVerb::new(arguments)?;
    let fleet = Fleet::new(arguments, session, &HostsFile::load(var)?)?;
    match verb {
        FleetVerb::Status => status::show(&fleet, out),
        FleetVerb::Clients(clients) => clients::show(clients, &fleet, out),
        FleetVerb::Change(change) => {
            change::perform(change, &fleet, arguments.one_at_a_time, out, err)
        }
    }
}

/// A verb that can be performed on several hosts.
enum FleetVerb<'a> {
    Status,
    Clients(&'a ClientsArguments),
    Change(&'a ChangeVerb),
}

impl FleetVerb<'_> {
    /// Checks that the verb can be performed on several hosts, with these options.
    ///
    /// # Errors
    /// In a sentence, that it cannot.
    fn new(arguments: &Arguments) -> Result<FleetVerb<'_>, Error> {
        use ChangeVerb::{Drain, Reload, Stop, Undrain, Upgrade};
        let usage = |sentence: &str| Err(Error::Usage(sentence.to_owned()));
        match &arguments.verb {
            CtlVerb::Change(Stop {
                if_stopping: Some(_),
            }) => usage("--if-stopping asks the service manager of this host; it excludes --hosts"),
            CtlVerb::Change(
                change @ (Drain { .. } | Reload { .. } | Stop { .. } | Undrain | Upgrade { .. }),
            ) => Ok(FleetVerb::Change(change)),
            CtlVerb::Status(StatusArguments { watch: Some(_) }) => {
                usage("--watch is for one host; it excludes --hosts")
            }
            CtlVerb::Status(_) | CtlVerb::Clients(_) if arguments.one_at_a_time => {
                usage("--one-at-a-time is for verbs that make changes")
            }
            CtlVerb::Status(_) => Ok(FleetVerb::Status),
            CtlVerb::Clients(clients) => Ok(FleetVerb::Clients(clients)),
            _ => usage(
                "this verb is for one host; --hosts is for status, clients, drain, undrain, reload, upgrade and stop",
            ),
        }
    }
}

/// Several hosts, and what is needed to reach them.
#[derive(Debug)]
struct Fleet<'a> {
    session: &'a Session,
    hosts: Vec<FleetHost>,
    ssh: Vec<String>,
    directory: PrivateDirectory,
    login_timeout: Duration,
}

/// A host.
#[derive(Debug)]
struct FleetHost {
    name: String,
    /// The control socket there.
    socket: PathBuf,
}

impl Fleet<'_> {
    fn new<'a>(
        arguments: &Arguments,
        session: &'a Session,
        file: &HostsFile,
    ) -> Result<Fleet<'a>, Error> {
        let with_socket = |name: String| {
            let socket = socket_of(&name, arguments, &session.daemon, file);
            check_socket(&socket)
                .map(|()| FleetHost { name, socket })
                .map_err(Error::Usage)
        };
        let names = file.expand(&arguments.hosts)?;
        let hosts = names
            .into_iter()
            .map(with_socket)
            .collect::<Result<_, _>>()?;
        let parent = env::temp_dir();
        let fail = |e| {
            let parent = parent.display();
            Error::Unable(format!("cannot create a directory in {parent}: {e}"))
        };
        let directory = PrivateDirectory::create(&parent).map_err(fail)?;
        let longest = directory.path().join(MAX_HOSTS.to_string());
        if longest.as_os_str().len() > MAX_UNIX_PATH {
            let parent = parent.display();
            return Err(Error::Unable(format!(
                "{parent} is too long for the path of a socket; set TMPDIR to a shorter one"
            )));
        }
        directory.remove_at_signals().map_err(fail)?;
        Ok(Fleet {
            session,
            hosts,
            ssh: file.ssh(),
            directory,
            login_timeout: arguments.login_timeout(),
        })
    }

    fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.hosts.iter().map(|host| host.name.as_str())
    }

    /// Acts on the host of this number, from 0. Its deadline begins now.
    fn on<T>(
        &self,
        number: usize,
        act: impl FnOnce(&Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let FleetHost { name, socket } = &self.hosts[number];
        let session = self.session.through(Tunnel::start(Route {
            ssh: &self.ssh,
            host: name,
            socket,
            directory: self.directory.path(),
            number,
            timeout: self.login_timeout,
        })?);
        act(&session).map_err(|error| session.explain(error))
    }

    /// Acts on all hosts at the same time, so that none waits for another one.
    fn on_all<T: Send>(
        &self,
        act: impl Fn(&str, &Session) -> Result<T, Error> + Sync,
    ) -> Vec<Result<T, Error>> {
        let act = &act;
        thread::scope(|threads| {
            let start = |(number, host): (usize, &FleetHost)| {
                let name = host.name.clone();
                let work = move || self.on(number, |session| act(&name, session));
                thread::Builder::new().spawn_scoped(threads, work)
            };
            let started: Vec<_> = self.hosts.iter().enumerate().map(start).collect();
            let ended = started.into_iter().map(|thread| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(e) => Err(Error::Unable(format!("cannot start a thread: {e}"))),
            });
            ended.collect()
        })
    }
}

/// Returns the control socket on a host: what the command line names is more specific than the file.
fn socket_of(host: &str, arguments: &Arguments, daemon: &str, file: &HostsFile) -> PathBuf {
    let usual = || PathBuf::from(format!("/run/{daemon}/control.sock"));
    match (&arguments.socket, &arguments.instance, &arguments.name) {
        (Some(path), _, _) => path.clone(),
        (None, Some(instance), _) => place_of_instance(daemon, instance),
        (None, None, Some(_)) => usual(),
        (None, None, None) => file.socket(host).map_or_else(usual, PathBuf::from),
    }
}
