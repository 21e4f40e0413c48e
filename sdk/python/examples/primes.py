"""A method that computes: the number of primes below n.

fdpassd app -- python3 examples/primes.py
"""

from fdpassd import App, Fault, call

app = App(name="primes", version="1.0")
MOST = 10_000_000


# A `def` runs alone in its app, and each worker has an app: by default, one for each CPU. The clients of a busy worker
# move to other workers after `stall-timeout`.
@app.method(idempotent=True)
def primes(below: int) -> int:
    if not isinstance(below, int) or not 2 <= below <= MOST:
        raise Fault("bad_params", f"below must be an integer from 2 to {MOST}")
    sieve = bytearray([1]) * below
    sieve[:2] = b"\0\0"
    for n in range(2, int(below**0.5) + 1):
        # No client waits any more: it has left, or `request-timeout` is over.
        if call().is_cancelled:
            return 0
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, below, n)))
    return sum(sieve)


app.run()
