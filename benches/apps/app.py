"""An app of fdpassd in Python: app.py def|async json|orjson."""

import sys

from fdpassd import App

kind, codec = sys.argv[1:]
app = App(concurrency=64, codec=codec)

if kind == "def":

    @app.method(reply="pong")
    def echo(value, /):
        return value

else:

    @app.method(reply="pong")
    async def echo(value, /):
        return value


app.run()
