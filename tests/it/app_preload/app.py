"""An app whose apps are forked. Its argument is a JSON object: how many MiB are preloaded, and what goes wrong."""

import ctypes
import json
import os
import random
import signal
import sys
import threading
import time

from fdpassd import App

options = json.loads(sys.argv[1])
app = App()


@app.preload
def load():
    app.model = os.urandom(4096) * (256 * options.get("mebibytes", 1))
    app.loaded_by = os.getpid()
    print("loaded", file=sys.stderr)
    wrong = options.get("wrong")
    if wrong == "error":
        raise RuntimeError("the model is gone")
    if wrong == "exit":
        os._exit(3)
    if wrong == "thread":
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    if wrong == "never":
        signal.pause()


@app.method(idempotent=True)
def about():
    umask = os.umask(0)
    os.umask(umask)
    print("said by the app")
    return {
        "loaded_by": app.loaded_by,
        "pid": os.getpid(),
        "group": os.getpgrp(),
        "random": random.random(),
        "directory": os.getcwd(),
        "environment": [os.environ.get("MODE"), *(n for n in os.environ if n.startswith("FDPASSD_"))],
        "user": [os.getuid(), os.getgid()],
        "umask": umask,
        "sockets": sum(os.readlink(f"/proc/self/fd/{n}").startswith("socket:") for n in range(3, 64) if exists(n)),
        "user1": signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL,
    }


def exists(number):
    return os.path.lexists(f"/proc/self/fd/{number}")


@app.method
def touch():
    return app.model[len(app.model) // 2]


@app.method
def end(status: int):
    os._exit(status)


@app.method
def crash():
    ctypes.string_at(0)


@app.method
def kill_group():
    os.killpg(0, signal.SIGKILL)


@app.method
def stray():
    """Starts a process in a session of its own, without a parent. Returns its pid."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(theirs, b"%d" % os.getpid())
            os.closerange(0, 64)
            signal.pause()
        os._exit(0)
    os.waitpid(child, 0)
    pid = int(os.read(ours, 16))
    os.close(ours)
    os.close(theirs)
    return pid


@app.method
def block():
    print("it blocks")
    # Without the interpreter, so that nothing but a signal ends it.
    ctypes.CDLL(None).pause()


app.run()
