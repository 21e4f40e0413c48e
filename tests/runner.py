"""Common parts of the test programs in Python: tests that lack something, and the lines of the outcome.

A test that lacks something raises `Skip`. It is skipped, unless the variable REQUIRE, a list with commas, names the need
or is `all`: then it has failed.
"""

import os
import time


class Skip(Exception):
    """A test cannot run here. `need` is the word for REQUIRE."""

    def __init__(self, need, why):
        super().__init__(f"needs {need}: {why}")
        self.need = need

    def is_failure(self):
        required = os.environ.get("REQUIRE", "").split(",")
        return self.need in required or "all" in required


def run_all(tests, lacking=None):
    """Runs functions `test_…`, each with a line, and returns the exit status. If `lacking` is a `Skip`, none can run."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    words = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}
    for test in tests:
        name = test.__name__.removeprefix("test_").replace("_", " ")
        begin = time.monotonic()
        try:
            if lacking is not None:
                raise lacking
            test()
            outcome = "passed"
        except Skip as skip:
            outcome = "failed" if skip.is_failure() else "skipped"
            name = f"{name}: {skip}"
        except Exception as error:  # whatever it is, the next test is run
            outcome, name = "failed", f"{name}: {type(error).__name__}: {error}"
        counts[outcome] += 1
        print(f"{words[outcome]:7} {time.monotonic() - begin:5.1f} s  {name}", flush=True)
    return conclude(counts)


def conclude(counts):
    """Prints the last line, and returns the exit status."""
    print(", ".join(f"{number} {outcome}" for outcome, number in counts.items()), flush=True)
    return 1 if counts["failed"] else 0
