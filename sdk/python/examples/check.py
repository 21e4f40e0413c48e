"""The methods that `fdpassctl app check` uses, as coroutines: fdpassctl app check -- python3 check.py"""

import asyncio
from typing import Any

from fdpassd import App, Fault

app = App(name="check")


@app.method(idempotent=True)
async def check_echo(value: Any, /) -> Any:
    return value


@app.method(idempotent=True)
async def check_sleep(ms: float) -> None:
    await asyncio.sleep(ms / 1000)


@app.method
async def check_fault(code: str, message: str) -> None:
    raise Fault(code, message)


@app.method
async def check_crash() -> None:
    raise LookupError("the text of an exception may be secret")


@app.method
async def check_print(text: str) -> None:
    print(text)


@app.on_close
def forget(client: int) -> None:
    """Asks for the ends of clients, so that they are checked, too."""


app.run()
