"""The package, as its ecosystem's own tools build it and see it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile
from email import message_from_bytes
from pathlib import Path

from .worker import ROOT, Worker, needs


def run(*arguments: str, directory: Path) -> str:
    """Returns what a module of Python prints. Raises its output if it fails."""
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    done = subprocess.run(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise AssertionError(f"{arguments}: {done.stdout}")
    return done.stdout


class Package(unittest.TestCase):
    def test_build_makes_a_wheel_that_serves(self) -> None:
        needs(self, "build", "setuptools")
        with tempfile.TemporaryDirectory(prefix="fdpassd-test-") as directory:
            place = Path(directory)
            # The tools write into the source.
            shutil.copytree(ROOT, place / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
            run("build", "--no-isolation", "--outdir", "../dist", directory=place / "source")
            ((archive,), (wheel,)) = (place.glob(f"dist/fdpassd-*{end}") for end in (".tar.gz", ".whl"))
            self.check_archive(archive)
            self.check_wheel(wheel, place / "installed")

    def check_archive(self, archive: Path) -> None:
        with tarfile.open(archive) as files:
            names = {name.partition("/")[2] for name in files.getnames()}
        for name in ("LICENSE-MIT", "LICENSE-APACHE", "README.md", "examples/shop.py", "tests/worker.py"):
            self.assertIn(name, names)

    def check_wheel(self, wheel: Path, installed: Path) -> None:
        self.assertTrue(wheel.name.endswith("-py3-none-any.whl"), wheel.name)
        with zipfile.ZipFile(wheel) as files:
            names = files.namelist()
            (metadata,) = (message_from_bytes(files.read(name)) for name in names if name.endswith("/METADATA"))
            # A wheel of Python only is installed by unpacking it.
            files.extractall(installed)
        self.assertIn("fdpassd/py.typed", names)
        modules = {path.name for path in (ROOT / "src" / "fdpassd").glob("*.py")}
        self.assertEqual({Path(name).name for name in names if name.endswith(".py")}, modules)
        for license in ("LICENSE-MIT", "LICENSE-APACHE"):
            self.assertTrue(any(name.endswith(f"/{license}") for name in names), names)
        self.assertEqual(metadata["License-Expression"], "MIT OR Apache-2.0")
        self.assertEqual(metadata["Requires-Python"], ">=3.11")
        self.assertEqual(metadata.get_all("Provides-Extra"), ["orjson", "msgspec", "uvloop", "srv"])
        needed = [need for need in metadata.get_all("Requires-Dist", []) if "extra" not in need]
        self.assertEqual(needed, [])
        found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        assert found is not None
        with Worker(found[1], run=False, sources=installed) as worker:
            worker.begin()
            self.assertEqual(worker.call("price", {"item": "tea", "count": 2}), {"result": 6})

    def test_the_types_are_right(self) -> None:
        needs(self, "mypy")
        run("mypy", "--cache-dir", os.devnull, directory=ROOT)
