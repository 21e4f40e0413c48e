"""The methods that `fdpassctl app check` uses, without coroutines: fdpassctl app check -- python3 check_blocking.py"""

import time
from typing import Any

from fdpassd import App, Fault

app = App(name="check")


@app.method(idempotent=True)
def check_echo(value: Any, /) -> Any:
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


@app.on_close
def forget(client: int) -> None:
    """Asks for the ends of clients, so that they are checked, too."""


app.run()
