"""The app of the tests, with the package for Python."""

import asyncio
import os

from fdpassd import App

app = App()


@app.start
def open_orders():
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
