"""Methods of the daemon fdpassd, written in Python.

>>> from fdpassd import App, Fault
>>> app = App()
>>> @app.method(idempotent=True)
... def price(item: str, count: int = 1) -> int:
...     if count < 1:
...         raise Fault("bad_params", "count is at least 1")
...     return 3 * count
>>> price("tea", 2)
6

``app.run()`` serves the methods; ``fdpassd app -- python3 app.py`` starts the program. The protocol is fdpassd-app(7).
`fdpassd.client` is a client that calls the methods of any daemon.

An import in a process that fdpassd has started makes the descriptor of the protocol close-on-exec, and lets SIGTERM,
SIGINT and SIGHUP pass: the end of that descriptor is the end of the app.
"""

from ._app import App
from ._call import Call, call
from ._fault import Fault
from ._log import LogHandler
from ._metrics import Counter, Histogram

__all__ = ["App", "Call", "Counter", "Fault", "Histogram", "LogHandler", "call"]
__version__ = "0.1.0"
