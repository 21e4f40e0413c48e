//! The servers: their names, their expected replies, and how they are built and run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::failure::{Context, Result};
use fdpassd::load::Framing;

use crate::common::load::{Check, LITTLE};
use crate::common::recipe::{Recipe, installed, succeed};

/// Processes or threads that execute methods, in every server.
pub(crate) const WORKERS: usize = 1;

/// A server in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Server {
    /// fdpassd without an app: the built-in method.
    Native,
    /// fdpassd with an app in Python, a function and the standard library's JSON.
    PyJson,
    /// The same with a coroutine.
    AsyncJson,
    /// fdpassd with an app in Python, a function and orjson.
    PyOrjson,
    /// The same with a coroutine.
    AsyncOrjson,
    /// fdpassd with an app in Node.js.
    Node,
    /// fdpassd with an app in Go.
    Go,
    /// asyncio alone, with the standard library's JSON.
    Asyncio,
    /// The same with a task for each request, which runs a coroutine.
    AsyncioTasks,
    /// asyncio alone, with orjson.
    AsyncioOrjson,
    /// The same with a task for each request, which runs a coroutine.
    AsyncioOrjsonTasks,
    /// A cluster of Node.js, round robin.
    Cluster,
    /// A server in Go with a goroutine for each connection.
    Goroutines,
    /// A process that passes bytes to another one, which echoes them.
    Relay,
    /// The same with a script in Python that echoes them.
    PyRelay,
    /// HTTP by uvicorn as pip installs it: asyncio and h11.
    Uvicorn,
    /// HTTP by uvicorn with uvloop and httptools.
    UvicornFast,
    /// HTTP by gunicorn, with threads.
    Gunicorn,
    /// HTTP by granian, ASGI.
    Granian,
}

/// A program of this build, and an environment of Python that the benchmark may install packages into.
pub(crate) struct Places {
    pub(crate) fdpassd: PathBuf,
    pub(crate) venv: PathBuf,
}

impl Server {
    /// All servers, in the order of the table.
    pub(crate) const ALL: [Server; 19] = [
        Server::Native,
        Server::PyJson,
        Server::AsyncJson,
        Server::Asyncio,
        Server::AsyncioTasks,
        Server::PyOrjson,
        Server::AsyncOrjson,
        Server::AsyncioOrjson,
        Server::AsyncioOrjsonTasks,
        Server::Node,
        Server::Cluster,
        Server::Go,
        Server::Goroutines,
        Server::Relay,
        Server::PyRelay,
        Server::Uvicorn,
        Server::UvicornFast,
        Server::Gunicorn,
        Server::Granian,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Server::Native => "fdpassd, built-in method",
            Server::PyJson => "fdpassd, Python, json",
            Server::AsyncJson => "fdpassd, Python, json, coroutine",
            Server::PyOrjson => "fdpassd, Python, orjson",
            Server::AsyncOrjson => "fdpassd, Python, orjson, coroutine",
            Server::Node => "fdpassd, Node.js",
            Server::Go => "fdpassd, Go",
            Server::Asyncio => "asyncio, json",
            Server::AsyncioTasks => "asyncio, json, coroutine",
            Server::AsyncioOrjson => "asyncio, orjson",
            Server::AsyncioOrjsonTasks => "asyncio, orjson, coroutine",
            Server::Cluster => "Node.js cluster",
            Server::Goroutines => "goroutines",
            Server::Relay => "relay to an echo, no JSON",
            Server::PyRelay => "relay to an echo in Python, no JSON",
            Server::Uvicorn => "uvicorn, HTTP",
            Server::UvicornFast => "uvicorn, uvloop and httptools, HTTP",
            Server::Gunicorn => "gunicorn, threads, HTTP",
            Server::Granian => "granian, ASGI, HTTP",
        }
    }

    pub(crate) fn is_fdpassd(self) -> bool {
        matches!(
            self,
            Server::Native
                | Server::PyJson
                | Server::AsyncJson
                | Server::PyOrjson
                | Server::AsyncOrjson
                | Server::Node
                | Server::Go
        )
    }

    /// Returns the method that is called; both names are equally long.
    pub(crate) fn method(self) -> &'static str {
        if self == Server::Native {
            "ping"
        } else {
            "echo"
        }
    }

    pub(crate) fn framing(self) -> Framing {
        match self {
            Server::Uvicorn | Server::UvicornFast | Server::Gunicorn | Server::Granian => {
                Framing::Http
            }
            _ => LITTLE,
        }
    }

    /// Returns how replies are checked: apps and servers serialize the JSON again, a relay has the request itself.
    pub(crate) fn check(self) -> Check {
        match self {
            Server::Relay | Server::PyRelay => Check::Echo,
            _ => Check::Value,
        }
    }

    /// Returns whether the server has a just-in-time compiler, which needs a second of each scenario.
    pub(crate) fn has_jit(self) -> bool {
        matches!(self, Server::Node | Server::Cluster)
    }

    /// Returns whether the server writes a line to standard output for each request, which is discarded.
    pub(crate) fn logs_requests(self) -> bool {
        false
    }

    /// Returns the server with which this one is compared.
    pub(crate) fn counterpart(self) -> Option<Server> {
        match self {
            Server::PyJson | Server::AsyncJson => Some(Server::Asyncio),
            Server::PyOrjson | Server::AsyncOrjson => Some(Server::AsyncioOrjson),
            Server::Node => Some(Server::Cluster),
            Server::Go => Some(Server::Goroutines),
            _ => None,
        }
    }

    /// Builds the server if needed. The error has the reason why it is not available here.
    pub(crate) fn prepare(self, places: &Places) -> Result<Recipe> {
        let python = places.venv.join("bin/python3");
        let python = python.to_str().context("a path that is not text")?;
        let file = |name: &str| sources().join(name).to_string_lossy().into_owned();
        Ok(match self {
            Server::Native => Recipe::new(&places.fdpassd, ["-c", "fdpassd.toml"]),
            Server::PyJson | Server::AsyncJson | Server::PyOrjson | Server::AsyncOrjson => {
                let is_async = matches!(self, Server::AsyncJson | Server::AsyncOrjson);
                let kind = if is_async { "async" } else { "def" };
                let codec = self.codec();
                places.python(codec)?;
                places.app(&[python, &file("app.py"), kind, codec])
            }
            Server::Asyncio
            | Server::AsyncioTasks
            | Server::AsyncioOrjson
            | Server::AsyncioOrjsonTasks => {
                let is_async = matches!(self, Server::AsyncioTasks | Server::AsyncioOrjsonTasks);
                let kind = if is_async { "async" } else { "def" };
                places.python(self.codec())?;
                Recipe::new(python, [&file("server.py"), "PORT", kind, self.codec()])
            }
            Server::Node => {
                installed("node", "--version")?;
                places.app(&["node", &file("app.js")])
            }
            Server::Cluster => {
                installed("node", "--version")?;
                Recipe::new("node", [&file("server.js"), "PORT"])
            }
            Server::Go => {
                let program = build_go("app")?;
                places.app(&[program.to_str().context("a path that is not text")?])
            }
            Server::Goroutines => Recipe::new(build_go("server")?, ["PORT"]),
            Server::Relay | Server::PyRelay => {
                let this = std::env::current_exe().context("the program of the benchmark")?;
                let script = file("reflect.py");
                let words: &[&str] = match self {
                    Server::PyRelay => {
                        installed("python3", "--version")?;
                        &["relay", "PORT", "--", "python3", &script]
                    }
                    _ => &["relay", "PORT"],
                };
                Recipe::new(this, words)
            }
            Server::Uvicorn | Server::UvicornFast => {
                places.python("uvicorn")?;
                let parts = if self == Server::Uvicorn {
                    ["asyncio", "h11"]
                } else {
                    places.python("uvloop")?;
                    places.python("httptools")?;
                    ["uvloop", "httptools"]
                };
                let words = format!(
                    "-m uvicorn --host 127.0.0.1 --port PORT --log-level error --no-access-log --loop {} --http {} --app-dir",
                    parts[0], parts[1]
                );
                Self::web(python, &words, "web:asgi")
            }
            Server::Gunicorn => {
                places.python("gunicorn")?;
                let words = "-m gunicorn -b 127.0.0.1:PORT -w 1 -k gthread --threads 4 --keep-alive 300 --log-level error --chdir";
                Self::web(python, words, "web:wsgi")
            }
            Server::Granian => {
                places.python("granian")?;
                let words = "-m granian --interface asgi --host 127.0.0.1 --port PORT --workers 1 --no-access-log --log-level error --working-dir";
                Self::web(python, words, "web:asgi")
            }
        })
    }

    fn web(python: &str, words: &str, application: &str) -> Recipe {
        let directory = sources().to_string_lossy().into_owned();
        let words: Vec<&str> = words
            .split(' ')
            .chain([directory.as_str(), application])
            .collect();
        Recipe::new(python, words)
    }

    fn codec(self) -> &'static str {
        match self {
            Server::PyOrjson
            | Server::AsyncOrjson
            | Server::AsyncioOrjson
            | Server::AsyncioOrjsonTasks => "orjson",
            _ => "json",
        }
    }
}

impl Places {
    /// Returns fdpassd with this app.
    fn app(&self, words: &[&str]) -> Recipe {
        let words = toml::Value::from(words.to_vec());
        let sdk = sources().join("../../sdk/python/src");
        let sdk = toml::Value::from(sdk.to_string_lossy().into_owned());
        let mut recipe = Recipe::new(&self.fdpassd, ["-c", "fdpassd.toml"]);
        recipe.config =
            format!("\n[app]\ncommand = {words}\nenvironment = {{ PYTHONPATH = {sdk} }}\n");
        recipe
    }

    /// Creates the environment of Python, and installs a package into it, if they are missing.
    fn python(&self, package: &str) -> Result<()> {
        let python = self.venv.join("bin/python3");
        if !python.exists() {
            let create = |options: &[&str]| {
                let mut create = Command::new("python3");
                succeed(create.args(options).arg(&self.venv), "python3")
            };
            // Debian has what installs packages in a package of its own. The standard library needs none.
            create(&["-m", "venv"]).or_else(|_| create(&["-m", "venv", "--without-pip"]))?;
        }
        let mut import = Command::new(&python);
        import.arg("-c").arg(format!("import {package}"));
        if succeed(&mut import, "python3").is_ok() {
            return Ok(());
        }
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:"]);
        succeed(install.arg(package), "pip")
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/apps")
}

/// Returns the directory of what the benchmark builds and installs.
pub(crate) fn built() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("apps")
}

/// Builds a program of the directory `go`.
fn build_go(name: &str) -> Result<PathBuf> {
    installed("go", "version")?;
    fs::create_dir_all(built()).context(built().display())?;
    let program = built().join(format!("go-{name}"));
    let mut build = Command::new("go");
    build
        .args(["build", "-o"])
        .arg(&program)
        .arg(format!("./{name}"))
        .current_dir(sources().join("go"));
    succeed(&mut build, "go")?;
    Ok(program)
}
