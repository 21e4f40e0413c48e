#!/usr/bin/env python3
"""A service manager with a descriptor store, as systemd's (sd_notify(3)): manager.py SOCKET PROGRAM [ARGUMENT…]

Runs the program, and stores the descriptors that it sends to SOCKET. SIGHUP restarts it as `systemctl restart` does: by
SIGTERM, and with the stored descriptors (sd_listen_fds(3)).
"""

import array
import fcntl
import os
import select
import signal
import socket
import sys

FIRST = 3
# Higher than any descriptor that the program gets, and lower than the usual limit.
ABOVE = 512


class Store:
    def __init__(self):
        # Name and descriptor.
        self.stored = []

    def receive_all(self, notices):
        """Handles all messages that have arrived."""
        size = array.array("i").itemsize
        while True:
            try:
                text, ancillary, _, _ = notices.recvmsg(8192, socket.CMSG_SPACE(253 * size))
            except BlockingIOError:
                return
            descriptors = array.array("i")
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(data[: len(data) // size * size])
            self.receive(text.decode(), descriptors)

    def receive(self, text, descriptors):
        lines = text.splitlines()
        name = next((line[len("FDNAME=") :] for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines:
            for descriptor in descriptors:
                self.add(name, descriptor)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if "FDSTOREREMOVE=1" in lines:
            for other, descriptor in self.stored:
                if other == name:
                    os.close(descriptor)
            self.stored = [(other, descriptor) for other, descriptor in self.stored if other != name]

    def add(self, name, descriptor):
        if any(os.path.sameopenfile(descriptor, other) for _, other in self.stored):
            os.close(descriptor)
        else:
            self.stored.append((name, descriptor))


def start(command, store):
    pid = os.fork()
    if pid != 0:
        return pid
    try:
        copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, ABOVE) for _, descriptor in store.stored]
        for number, copy in enumerate(copies, FIRST):
            os.dup2(copy, number)
        os.closerange(FIRST + len(copies), os.sysconf("SC_OPEN_MAX"))
        if copies:
            os.environ["LISTEN_PID"] = str(os.getpid())
            os.environ["LISTEN_FDS"] = str(len(copies))
            os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in store.stored)
        os.execvp(command[0], command)
    finally:
        os._exit(127)


def main():
    path, *command = sys.argv[1:]
    os.environ["NOTIFY_SOCKET"] = path
    os.environ["FDPASSD_KEEP_CLIENTS"] = "1"
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(path)
    notices.setblocking(False)
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for number in (signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: None)

    store = Store()
    pid = start(command, store)
    restarts = False
    while True:
        ready, _, _ = select.select([notices, woken], [], [])
        signals = woken.recv(64) if woken in ready else b""
        if signal.SIGHUP in signals:
            restarts = True
            os.kill(pid, signal.SIGTERM)
        ended, status = os.waitpid(pid, os.WNOHANG) if signal.SIGCHLD in signals else (0, 0)
        # All messages of the program, before its successor starts.
        store.receive_all(notices)
        if ended == pid:
            if not restarts:
                sys.exit(os.waitstatus_to_exitcode(status))
            restarts = False
            pid = start(command, store)


main()
