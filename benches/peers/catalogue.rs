//! The servers: their names, their expected replies, and how they are built and run.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::failure::{Context, Result};
use fdpassd::load::Framing;

use crate::common::load::{Check, LITTLE};
use crate::common::recipe::{Recipe, installed, succeed};

/// Worker processes or threads of every server that has such a number.
pub(crate) const WORKERS: usize = 2;

/// The directory of nginx's modules, of Debian.
const NGINX_MODULES: &str = "/usr/lib/nginx/modules";

/// A server in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Server {
    /// One process that echoes bytes over epoll: the reference.
    Echo,
    /// Two such processes on one port, by SO_REUSEPORT.
    Reuseport,
    /// The minimum that implements the protocol: the same with frames and serde_json RawValue.
    Floor,
    /// The server of this project.
    Fdpassd,
    /// Another build of it, to compare with.
    Baseline,
    /// tokio, LengthDelimitedCodec, serde_json RawValue.
    Tokio,
    /// Node.js cluster, round robin.
    Node,
    /// A goroutine for each connection.
    Go,
    /// nginx with njs, over HTTP.
    Njs,
    /// The original Python server: a child serves one connection at a time.
    Seed,
}

/// Paths of the servers that are not part of this program.
pub(crate) struct Places {
    pub(crate) fdpassd: PathBuf,
    /// Another build of fdpassd, if one was named.
    pub(crate) baseline: Option<PathBuf>,
    /// The directory of the peers' sources, if there is one.
    pub(crate) peers: Option<PathBuf>,
}

impl Server {
    /// All servers, in the order of the table.
    pub(crate) const ALL: [Server; 10] = [
        Server::Echo,
        Server::Reuseport,
        Server::Floor,
        Server::Fdpassd,
        Server::Baseline,
        Server::Tokio,
        Server::Node,
        Server::Go,
        Server::Njs,
        Server::Seed,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Server::Echo => "raw echo, 1 process",
            Server::Reuseport => "raw echo, SO_REUSEPORT",
            Server::Floor => "the floor: echo + RawValue",
            Server::Fdpassd => "fdpassd",
            Server::Baseline => "fdpassd, the other build",
            Server::Tokio => "tokio, RawValue",
            Server::Node => "Node cluster, round robin",
            Server::Go => "Go, RawMessage",
            Server::Njs => "nginx and njs, HTTP",
            Server::Seed => "the original Python server",
        }
    }

    pub(crate) fn is_fdpassd(self) -> bool {
        matches!(self, Server::Fdpassd | Server::Baseline)
    }

    /// Returns the method that is called.
    pub(crate) fn method(self) -> &'static str {
        "ping"
    }

    pub(crate) fn framing(self) -> Framing {
        match self {
            Server::Njs => Framing::Http,
            _ => LITTLE,
        }
    }

    /// Returns how replies are checked: only fdpassd promises to return params byte for byte.
    pub(crate) fn check(self) -> Check {
        match self {
            Server::Echo | Server::Reuseport => Check::Echo,
            Server::Floor | Server::Fdpassd | Server::Baseline => Check::Bytes,
            Server::Tokio | Server::Node | Server::Go | Server::Njs | Server::Seed => Check::Value,
        }
    }

    /// Returns the number of connections that the server handles at the same time, if it is small.
    pub(crate) fn most_connections(self) -> Option<usize> {
        (self == Server::Seed).then_some(WORKERS)
    }

    /// Returns whether the server accepts frames in pieces and several at once.
    pub(crate) fn reads_frames_in_pieces(self) -> bool {
        self != Server::Seed
    }

    /// Returns whether the server has a just-in-time compiler, which needs a second of each scenario.
    pub(crate) fn has_jit(self) -> bool {
        self == Server::Node
    }

    /// Returns whether the server writes a line to standard output for each request, which is discarded.
    pub(crate) fn logs_requests(self) -> bool {
        self == Server::Seed
    }

    /// Returns the same server with a method that blocks, and for fdpassd a short stall timeout.
    pub(crate) fn for_stalls(self, recipe: &Recipe) -> Recipe {
        let mut recipe = recipe.clone();
        match self {
            Server::Fdpassd => recipe.config = "\n[limits]\nstall-timeout = \"20ms\"\n".to_owned(),
            Server::Node => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/block.js");
                recipe.prepend(["-r".into(), script.into()]);
            }
            _ => {}
        }
        recipe
    }

    /// Builds the server if needed. The error has the reason why it is not available here.
    pub(crate) fn prepare(self, places: &Places) -> Result<Recipe> {
        let peers = || {
            let peers = places.peers.as_deref();
            peers.context("no directory of peers: name one by --peers or PEERS")
        };
        let recipe = |program: OsString, arguments: &str| {
            let workers = WORKERS.to_string();
            let arguments = arguments.replace("WORKERS", &workers);
            Recipe::new(program, arguments.split(' '))
        };
        let this = || this_program().map(OsString::from);
        Ok(match self {
            Server::Echo => recipe(this()?, "echo --port PORT"),
            Server::Reuseport => recipe(this()?, "echo --port PORT --processes WORKERS"),
            Server::Floor => recipe(this()?, "echo --frames --port PORT --processes WORKERS"),
            // The port is in the configuration file, see `common/server.rs`.
            Server::Fdpassd => recipe(places.fdpassd.clone().into(), "-c fdpassd.toml"),
            Server::Baseline => {
                let program = places.baseline.clone();
                let program = program.context("no other build: name one by --baseline")?;
                recipe(program.into(), "-c fdpassd.toml")
            }
            Server::Tokio => {
                let program = build_tokio(&peers()?.join("tokio"))?;
                recipe(program.into(), "--raw --port PORT --workers WORKERS")
            }
            Server::Node => {
                let script = present(&peers()?.join("node/server.js"))?;
                installed("node", "--version")?;
                let arguments = "--policy rr --port PORT --workers WORKERS";
                with_script(recipe("node".into(), arguments), script)
            }
            Server::Go => {
                let program = build_go(&peers()?.join("go"))?;
                recipe(program.into(), "-raw -port PORT -workers WORKERS")
            }
            Server::Njs => {
                installed("nginx", "-v")?;
                let module = Path::new(NGINX_MODULES).join("ngx_http_js_module.so");
                if !module.exists() {
                    let file = module.display();
                    return Err(format!("{file} is missing (libnginx-mod-http-js)").into());
                }
                let config = include_str!("njs/nginx.conf").replace("MODULES", NGINX_MODULES);
                recipe("nginx".into(), "-e stderr -p . -c nginx.conf")
                    .with_file(
                        "nginx.conf",
                        config.replace("WORKERS", &WORKERS.to_string()),
                    )
                    .with_file("ping.js", include_str!("njs/ping.js"))
            }
            Server::Seed => {
                let script = present(&peers()?.join("seed/server.py"))?;
                installed("python3", "--version")?;
                with_script(recipe("python3".into(), "PORT WORKERS"), script)
            }
        })
    }
}

/// Makes `script` the first argument.
fn with_script(mut recipe: Recipe, script: OsString) -> Recipe {
    recipe.prepend([script]);
    recipe
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's file")
}

fn present(path: &Path) -> Result<OsString> {
    let path = path.canonicalize().context(path.display())?;
    Ok(path.into())
}

/// Copies the sources of a peer to this project's target directory, because the originals are not written to.
fn copied(source: &Path) -> Result<PathBuf> {
    let name = source.file_name().context("a peer without a name")?;
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("peers")
        .join(name);
    copy_tree(source, &copy)?;
    Ok(copy)
}

/// Copies changed files only, so that nothing is built twice.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).context(to.display())?;
    for entry in fs::read_dir(from).context(from.display())? {
        let entry = entry.context(from.display())?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().context(source.display())?.is_dir() {
            if entry.file_name() != "target" {
                copy_tree(&source, &target)?;
            }
            continue;
        }
        let content = fs::read(&source).context(source.display())?;
        if fs::read(&target).ok().as_ref() != Some(&content) {
            fs::write(&target, content).context(target.display())?;
        }
    }
    Ok(())
}

fn build_tokio(source: &Path) -> Result<PathBuf> {
    let copy = copied(source)?;
    let target = copy.join("target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--release", "--quiet", "--target-dir"])
        .arg(&target)
        .current_dir(&copy);
    succeed(&mut build, "cargo").context("it cannot be built")?;
    Ok(target.join("release/tokio-peer"))
}

fn build_go(source: &Path) -> Result<PathBuf> {
    present(source)?;
    installed("go", "version")?;
    let copy = copied(source)?;
    let program = copy.join("gopeer");
    let mut build = Command::new("go");
    build
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(&copy);
    succeed(&mut build, "go").context("it cannot be built")?;
    Ok(program)
}
