"""The methods of this app. `fdpassctl reload` applies a change; clients stay connected."""

import os

from fdpassd import App, Fault

app = App()
greeting = os.environ.get("GREETING", "Hello")


# Idempotent: if the process dies in it, the request runs once more. A method that waits is an `async def`.
@app.method(idempotent=True)
def hello(name: str) -> str:
    if not isinstance(name, str) or not name:
        raise Fault("bad_params", "name must be a string that is not empty")
    return f"{greeting}, {name}!"


app.run()
