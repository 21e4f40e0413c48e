"""The methods that `fdpassctl app check` uses, without coroutines: fdpassctl app check -- python3 blocking.py"""

import os
import subprocess
import time
from typing import Any

from fdpassd import App, Fault

app = App(name="conformance")
echoes = app.counter("check_echoes", "Calls of check_echo.")


@app.method(idempotent=True)
def check_echo(value: Any, /) -> Any:
    echoes.add(1)
    return value


@app.method(idempotent=True)
def check_sleep(ms: float) -> None:
    time.sleep(ms / 1000)


@app.method
def check_fault(code: str, message: str) -> None:
    raise Fault(code, message)


@app.method
def check_crash() -> None:
    raise LookupError("the text of an exception may be secret")


@app.method
def check_print(text: str) -> None:
    print(text)


@app.method
def check_null() -> None:
    pass


@app.method
def check_spawn() -> dict[str, Any]:
    # The child outlives the call, and has all descriptors that are not close-on-exec.
    child = subprocess.Popen(["sleep", "2"], close_fds=False)
    try:
        target = os.readlink(f"/proc/{child.pid}/fd/3")
    except OSError:
        target = ""
    return {"pid": child.pid, "open": target.startswith("socket:")}


@app.on_close
def forget(client: int) -> None:
    print(f"<7>client {client} has left")


app.run()
