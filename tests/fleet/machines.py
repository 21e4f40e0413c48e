"""Two hosts and a balancer in network namespaces, which are connected to that of this process by a bridge."""

import asyncio
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

from load import pause

HERE = os.path.dirname(os.path.realpath(__file__))
GUIDE = f"{HERE}/../../docs/haproxy.md"
# The directory of all files.
RUN = "/run/fleet"
STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
BALANCER = "192.0.2.20"
ADDRESSES = {"lb": BALANCER, "a": "192.0.2.31", "b": "192.0.2.32"}
# The longest wait for a fact, in seconds.
WITHIN = 60


class Failed(Exception):
    """A promise was not kept."""


def check(is_so, what):
    if not is_so:
        raise Failed(what)


async def until(what, is_so):
    """Waits for a fact."""
    end = time.monotonic() + WITHIN
    while not await is_so():
        check(time.monotonic() < end, f"not within {WITHIN} s: {what}")
        await pause(0.05)


def in_namespace(name, *command):
    return ["ip", "netns", "exec", name, *command]


def connect_hosts():
    """Makes a bridge, with this process at it as the client, and a namespace for each host."""
    lines = ["link set lo up", "link add bridge type bridge", "addr add 192.0.2.10/24 dev bridge", "link set bridge up"]
    for name, address in ADDRESSES.items():
        lines += [
            f"netns add {name}",
            f"link add to-{name} type veth peer name net netns {name}",
            f"link set to-{name} master bridge up",
            f"-n {name} addr add {address}/24 dev net",
            f"-n {name} link set lo up",
            f"-n {name} link set net up",
        ]
    for line in lines:
        subprocess.run(["ip", *line.split()], check=True)
    # The clients need the ports as well.
    ports = ["sysctl", "-qp", write(f"{RUN}/sysctl.conf", block("ini"))]
    subprocess.run(ports, check=True)
    subprocess.run(in_namespace("lb", *ports), check=True)


def block(language):
    """Returns the code of the guide in this language."""
    with open(GUIDE, encoding="utf-8") as guide:
        found = re.findall(rf"^```{language}\n(.*?)^```$", guide.read(), re.MULTILINE | re.DOTALL)
    return "".join(found)


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def logged(name):
    return open(f"{RUN}/{name}.log", "ab")


class Host:
    """A daemon in a namespace of its own."""

    def __init__(self, name, programs):
        self.name = name
        self.programs = programs
        self.process = None
        self.keeps = False
        os.mkdir(f"{RUN}/{name}")
        self.config = write(f"{RUN}/{name}/fdpassd.toml", block("toml"))

    async def start(self, keeps=False):
        """Starts the daemon; if `keeps`, under a service manager that keeps its clients."""
        self.keeps = keeps
        command = [f"{self.programs}/fdpassd", "-c", self.config]
        if keeps:
            notices = f"{RUN}/{self.name}/notify"
            if os.path.exists(notices):
                os.unlink(notices)
            command = [sys.executable, f"{HERE}/manager.py", notices, *command]
        self.process = await asyncio.create_subprocess_exec(
            *in_namespace(self.name, *command),
            env=os.environ | {"RUNTIME_DIRECTORY": f"{RUN}/{self.name}"},
            stdout=logged(self.name),
            stderr=logged(self.name),
        )
        await until(f"host {self.name} serves", self.serves)

    async def serves(self):
        code, text = await self.run("status", "--json")
        return code == 0 and any(worker["state"] == "ready" for worker in json.loads(text)["workers"])

    async def run(self, *arguments):
        """Runs fdpassctl; returns its exit code and output."""
        process = await asyncio.create_subprocess_exec(
            f"{self.programs}/fdpassctl",
            "--socket",
            f"{RUN}/{self.name}/control.sock",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    async def ctl(self, *arguments):
        code, text = await self.run(*arguments)
        check(code == 0, f"fdpassctl {' '.join(arguments)} on {self.name}: {code}: {text.strip()}")
        return text

    async def status(self):
        return json.loads(await self.ctl("status", "--json"))

    async def shown_clients(self):
        """Returns its clients, as fdpassctl shows them."""
        pages = (await self.ctl("clients", "--json")).splitlines()
        return [client for page in pages for client in json.loads(page)["clients"]]

    async def clients(self):
        """Returns the number of its clients, and of those that have been connected for a second or more."""
        clients = await self.shown_clients()
        return len(clients), sum(client["age_seconds"] >= 1 for client in clients)

    def runs(self):
        return self.process is not None and self.process.returncode is None

    async def stop(self):
        await self.ctl("stop")
        await self.process.wait()

    async def restart(self):
        """Has the service manager restart the daemon."""
        before = (await self.status())["pid"]
        self.process.send_signal(signal.SIGHUP)

        async def is_another():
            code, text = await self.run("status", "--json")
            return code == 0 and json.loads(text)["pid"] != before

        await until("another process serves", is_another)
        await until("a worker is ready", self.serves)

    async def plug(self, state):
        """Sets the network of the host up or down."""
        subprocess.run(["ip", "link", "set", f"to-{self.name}", state], check=True)

    async def kill(self):
        """Kills the master."""
        os.kill((await self.status())["pid"], signal.SIGKILL)
        await self.process.wait()

    async def is_drained(self):
        status = await self.status()
        return status["drained"] and all(listener["refuses"] for listener in status["listeners"])


class Balancer:
    """A backend of HAProxy or nginx."""

    def __init__(self, name, port, backend=None):
        self.name = name
        self.port = port
        # HAProxy has statistics of its servers. nginx has none.
        self.backend = backend
        self.has_statistics = backend is not None
        self.program = "haproxy" if self.has_statistics else "nginx"

    async def ask(self, command):
        reader, writer = await asyncio.open_unix_connection(f"{RUN}/haproxy.sock")
        writer.write(command.encode() + b"\n")
        text = await reader.read()
        writer.close()
        return text.decode()

    async def server(self, name):
        """Returns the statistics of a server."""
        rows = csv.DictReader((await self.ask("show stat")).removeprefix("# ").splitlines())
        return next(row for row in rows if (row["pxname"], row["svname"]) == (self.backend, name))

    async def uses(self, name):
        """Returns whether HAProxy sends new clients to a server."""
        try:
            server = await self.server(name)
        except OSError:
            # It has not started yet.
            return False
        return server["status"] == "UP" and server["weight"] != "0"

    async def failed_connections(self):
        """Returns how often HAProxy has tried a server again, or another one, and how often it has given up."""
        if not self.has_statistics:
            return 0, 0
        servers = [await self.server(name) for name in ("a", "b")]
        retries = sum(int(server["wretr"]) + int(server["wredis"]) for server in servers)
        return retries, sum(int(server["econ"]) for server in servers)

    async def ports_at(self, name):
        """Returns the ports of the clients that are connected to a server."""
        sessions = (await self.ask("show sess")).splitlines()
        here = [line for line in sessions if f" be={self.backend} " in line and f" srv={name} " in line]
        return {int(re.search(r" src=[0-9.]+:(\d+) ", line)[1]) for line in here}


def start_haproxy():
    common = write(f"{RUN}/global.cfg", f"global\n    stats socket {RUN}/haproxy.sock level admin\n")
    config = write(f"{RUN}/haproxy.cfg", block("haproxy"))
    command = in_namespace("lb", "haproxy", "-db", "-f", common, "-f", config)
    subprocess.Popen(command, stdout=logged("haproxy"), stderr=logged("haproxy"))


def start_nginx():
    for directory in ("/run/nginx", "/run/nginx/logs"):
        os.mkdir(directory)
    config = write(f"{RUN}/nginx.conf", f"""\
load_module {STREAM_MODULE};
daemon off;
user root;
pid /run/nginx/pid;
error_log {RUN}/nginx.log;
events {{}}
{block("nginx")}""")
    command = in_namespace("lb", "nginx", "-p", "/run/nginx", "-c", config)
    subprocess.Popen(command, stdout=logged("nginx"), stderr=logged("nginx"))
