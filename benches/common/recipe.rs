//! How servers are run, and what is needed to build them.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::catalogue::WORKERS;

use super::failure::{Context, Result};

/// A command line that serves on a port, in the foreground.
#[derive(Clone)]
pub(crate) struct Recipe {
    program: OsString,
    arguments: Vec<OsString>,
    /// Additional lines of fdpassd's configuration.
    pub(crate) config: String,
    /// Files in the working directory of the server: names and texts.
    files: Vec<(&'static str, String)>,
}

impl Recipe {
    /// `PORT` in an argument stands for the port.
    pub(crate) fn new<A: Into<OsString>>(
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Recipe {
        Recipe {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            config: String::new(),
            files: Vec::new(),
        }
    }

    /// Has the server started with this file in its working directory. `PORT` in the text stands for the port.
    #[allow(dead_code, reason = "only a server of `peers` needs one")]
    pub(crate) fn with_file(mut self, name: &'static str, text: impl Into<String>) -> Recipe {
        self.files.push((name, text.into()));
        self
    }

    /// Writes the files into a directory.
    pub(crate) fn write_files(&self, directory: &Path, port: u16) -> Result<()> {
        for (name, text) in &self.files {
            let text = text.replace("PORT", &port.to_string());
            fs::write(directory.join(name), text).context(name)?;
        }
        Ok(())
    }

    /// Puts other arguments in front.
    pub(crate) fn prepend(&mut self, arguments: impl IntoIterator<Item = OsString>) {
        self.arguments.splice(0..0, arguments);
    }

    pub(crate) fn program(&self) -> &OsString {
        &self.program
    }

    /// Returns the arguments with this port.
    pub(crate) fn arguments(&self, port: u16) -> Vec<OsString> {
        let port = port.to_string();
        let with_port = |argument: &OsString| match argument.to_str() {
            Some(text) => text.replace("PORT", &port).into(),
            None => argument.clone(),
        };
        self.arguments.iter().map(with_port).collect()
    }
}

/// Returns the configuration of fdpassd for this port.
pub(crate) fn fdpassd_config(port: u16, socket: &Path) -> String {
    let socket = toml::Value::from(socket.to_string_lossy().into_owned());
    format!(
        "listen = [\"127.0.0.1:{port}\"]\n\n[workers]\ncount = {WORKERS}\n\n[control]\nsocket = {socket}\n"
    )
}

/// Fails if a program does not run with this argument.
pub(crate) fn installed(program: &str, question: &str) -> Result<()> {
    let status = Command::new(program)
        .arg(question)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} does not run: {status}").into()),
        Err(_) => Err(format!("{program} is not installed").into()),
    }
}

/// Runs a program, and returns the last line of its standard error if it fails.
pub(crate) fn succeed(command: &mut Command, name: &str) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(format!("{name} cannot be run"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    let last = last.unwrap_or_default();
    Err(format!("{name} ended with {}: {last}", output.status).into())
}
