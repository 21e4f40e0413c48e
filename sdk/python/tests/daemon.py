"""A daemon with an app, for tests of the client."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path
from typing import Self

from .worker import SOURCES, TIMEOUT

PROJECT = SOURCES.parents[2]

#: The program of the tests, which must be there then. By default the newest build of this project is taken.
VARIABLE = "FDPASSD"


def program() -> Path:
    """Returns the program fdpassd; fdpassctl is next to it.

    :raises unittest.SkipTest: It is not built.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).resolve(strict=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    built = [path for build in ("debug", "release") if (path := target / build / "fdpassd").exists()]
    if not built:
        raise unittest.SkipTest(f"fdpassd is not built, and ${VARIABLE} does not name it")
    return max(built, key=lambda path: path.stat().st_mtime)


class Daemon:
    """A daemon with a Unix socket, or with a TCP port.

    :param app: The code of its app, as for `Worker`; without it the daemon has its own methods.
    :param config: More lines of its configuration.
    :param listen: The listener, as TOML; DIRECTORY is that of its files.
    """

    def __init__(self, app: str | None, config: str, listen: str) -> None:
        self._program = program()
        self._directory = tempfile.TemporaryDirectory(prefix="fdpassd-test-")
        self.directory = Path(self._directory.name)
        lines = [f"listen = [{listen.replace('DIRECTORY', str(self.directory))}]", "workers.count = 1"]
        if app is not None:
            path = self.directory / "app.py"
            path.write_text("from fdpassd import *\n" + textwrap.dedent(app) + "\napp.run()\n")
            lines += [f'app.command = ["{sys.executable}", "{path}"]']
            lines += [f'app.environment = {{ PYTHONPATH = "{SOURCES}", PYTHONDONTWRITEBYTECODE = "1" }}']
        (self.directory / "fdpassd.toml").write_text("\n".join([*lines, config]) + "\n")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        with open(self.directory / "log", "w") as log:
            process = subprocess.Popen(
                [self._program, "-c", self.directory / "fdpassd.toml"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**environment, "RUNTIME_DIRECTORY": str(self.directory)},
                process_group=0,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if " listens on " not in line:
            process.kill()
            process.wait()
            raise AssertionError(f"the daemon does not start: {line}{self.log()}")
        self.address = line.partition(" listens on ")[2].partition(";")[0]
        return process

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def ctl(self, *arguments: str) -> str:
        """Runs fdpassctl. Returns its output."""
        program = str(self._program.with_name("fdpassctl"))
        command = [program, "--socket", str(self.directory / "control.sock"), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=TIMEOUT).stdout

    def restart(self) -> None:
        """Starts a daemon that has ended once more, with the same listener if that is a Unix socket."""
        self.process.wait(TIMEOUT)
        self._close()
        self.process = self._start()

    def kill(self) -> None:
        """Kills the daemon. Its workers and apps end as well."""
        self.process.kill()
        self.process.wait(TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self._close()
        self._directory.cleanup()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
