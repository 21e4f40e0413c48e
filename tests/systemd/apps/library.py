"""The app of the tests, with the package for Python."""

import asyncio
import os
import subprocess

from fdpassd import App

app = App()


@app.start
def open_orders():
    # A process in a session of its own, which has no open descriptors of the app.
    subprocess.Popen(["tail", "-f", "/dev/null"], stdin=0, stdout=0, stderr=0, start_new_session=True)
    app.orders = open(os.environ["ORDERS"], "a", buffering=1)


@app.method(idempotent=True)
async def echo(value, /):
    await asyncio.sleep(0.002)
    return value


@app.method
async def order(number, ms):
    print(number, file=app.orders)
    await asyncio.sleep(ms / 1000)
    return number


app.run()
