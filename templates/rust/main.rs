//! The daemon hellod and its methods. `fdpassctl -n hellod upgrade` applies a new build; clients stay connected.

use std::process::ExitCode;

use fdpassd::{Call, Daemon, Fault, Method, WorkerInfo};
use serde::Deserialize;

/// The table `[hellod]` of hellod.toml.
#[derive(Deserialize)]
#[serde(default)]
struct Settings {
    greeting: String,
}

impl Default for Settings {
    fn default() -> Settings {
        let greeting = "Hello".to_owned();
        Settings { greeting }
    }
}

/// The state of one worker process. What must outlive it belongs in a database or a file.
struct Greeter {
    greeting: String,
}

/// The params of `hello`.
#[derive(Deserialize)]
struct Hello {
    name: String,
}

impl Greeter {
    fn new(worker: &WorkerInfo<Settings>) -> Result<Greeter, Fault> {
        let greeting = worker.config.greeting.clone();
        Ok(Greeter { greeting })
    }

    fn hello(&mut self, Hello { name }: Hello, _: &Call) -> Result<String, Fault> {
        if name.is_empty() {
            return Err(Fault::bad_params("name must not be empty"));
        }
        Ok(format!("{}, {name}!", self.greeting))
    }
}

fn main() -> ExitCode {
    Daemon::new("hellod")
        .version(env!("CARGO_PKG_VERSION"))
        .config::<Settings>()
        .state(Greeter::new)
        // Idempotent: if a worker dies in it, the request runs once more in another worker.
        .method(Method::new("hello", Greeter::hello).idempotent())
        .run()
}
