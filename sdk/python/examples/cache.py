"""A cache in SQLite, which all workers share and which outlives them.

CACHE=/var/tmp/cache.sqlite fdpassd app -- python3 examples/cache.py
"""

import json
import os
import sqlite3
import time
from typing import Any

from fdpassd import App, Fault

app = App(name="cache", version="1.0")
path = os.environ.get("CACHE", "cache.sqlite")


# Each app has a connection of its own. Without a BEGIN, each statement is a transaction: an app that is killed in it
# leaves the old contents or the new ones.
def connect() -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=10, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE IF NOT EXISTS cache (key TEXT PRIMARY KEY, value TEXT NOT NULL, until REAL NOT NULL)")
    return database


database = connect()


@app.method(idempotent=True)
def put(key: str, value: Any, seconds: float = 60) -> None:
    if not isinstance(key, str) or not isinstance(seconds, (int, float)):
        raise Fault("bad_params", "key must be a string, and seconds a number")
    row = (key, json.dumps(value), time.time() + seconds)
    database.execute("INSERT OR REPLACE INTO cache VALUES (?, ?, ?)", row)


# The result of a key that is missing or too old is null.
@app.method(idempotent=True)
def get(key: str) -> Any:
    if not isinstance(key, str):
        raise Fault("bad_params", "key must be a string")
    row = database.execute("SELECT value FROM cache WHERE key = ? AND until > ?", (key, time.time())).fetchone()
    return json.loads(row[0]) if row else None


@app.method(idempotent=True)
def expire() -> int:
    return database.execute("DELETE FROM cache WHERE until <= ?", (time.time(),)).rowcount


app.run()
