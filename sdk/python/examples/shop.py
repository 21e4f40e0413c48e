"""A shop: prices that take a while to look up, and orders.

fdpassd app -- python3 examples/shop.py
"""

import asyncio

from fdpassd import App, Fault, call

app = App(name="shop", version="1.0")
orders = app.counter("orders", "Orders that were accepted.")
prices: dict[str, float] = {}


# Runs before the first request.
@app.start
def load() -> None:
    prices.update(tea=4.5, milk=1.2)


# A stand-in for a database. The wait ends by CancelledError when the client has left.
async def price_of(item: str) -> float:
    await asyncio.sleep(0.005)
    if item not in prices:
        raise Fault("no_such_item", f"there is no {item}")
    return prices[item]


@app.method(idempotent=True)
async def price(item: str, count: int = 1) -> float:
    if not isinstance(count, int) or count < 1:
        raise Fault("bad_params", "count must be an integer of at least 1")
    return await price_of(item) * count


# Not idempotent: if the process dies in it, the client gets `crashed` and decides whether to order again.
@app.method
async def order(item: str) -> dict[str, object]:
    price = await price_of(item)
    orders.add(1)
    print(f"client {call().client} orders {item}")
    return {"item": item, "price": price}


app.run()
