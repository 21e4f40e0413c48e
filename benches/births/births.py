"""The cost of births of workers: `births.py cost` and `births.py held`. See ../README.md."""

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TICK = 1e6 / os.sysconf("SC_CLK_TCK")

#: How long a server may take to listen, and to answer.
TIMEOUT = 20.0

#: The goals of `cost`: births a second, and the CPU time of a birth against that of other servers.
RATE = 2000
RATIOS = {"fdpassd, exec": 0.3, "C, fork": 2.2}

#: The goal of `held`: the longest time between two waits in microseconds; and how much more with many clients counts as
#: growth.
HELD = 150
GROWTH = 1.1


def configuration(directory, name, port, workers):
    """Writes a configuration. Returns its path."""
    path = directory / f"{name}.toml"
    path.write_text(
        f'listen = ["127.0.0.1:{port}"]\ncontrol.socket = "{directory}/{name}.sock"\n'
        f'log.level = "error"\nlimits.max-clients-per-address = "none"\nworkers = {{ {workers} }}\n'
    )
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_server(port):
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def compiled(directory, source, name):
    program = directory / name
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
    return program


class Server:
    """A server with a process for each request, and the CPU time of all its processes."""

    def __init__(self, command, port, cpu):
        self.port = port
        self.process = subprocess.Popen(
            ["taskset", "-c", cpu, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await_server(port)

    def cpu(self):
        """Returns the microseconds of the first process, of those that it has collected, and of its children."""
        pid = self.process.pid
        own, ended = times(pid)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        running = [times(child)[0] for child in children]
        return [own, ended, sum(running)]


def times(pid):
    """Returns the microseconds of a process, and of the children that it has collected. None of one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        # More exact than the ticks, which is all that there is of children.
        own = Path(f"/proc/{pid}/schedstat").read_text().split()[0]
    except OSError:
        return 0.0, 0.0
    return int(own) / 1e3, sum(int(field) * TICK for field in fields[13:15])


def cost(options):
    directory = Path(tempfile.mkdtemp())
    load = compiled(directory, HERE / "load.c", "load")
    models = compiled(directory, HERE.parent / "peers/models/models.c", "models")
    wanted = [("C, fork", None)]
    for name, program in [("fdpassd", options.fdpassd), ("baseline", options.baseline)]:
        if program:
            wanted += [(f"{name}, exec", program), (f"{name}, fork", program)]
    servers = {}
    for name, program in wanted:
        port = free_port()
        command = [models, "fork", port, 1]
        if program:
            workers = f'count = {options.workers}, max-requests = 1, start = "{name[-4:]}"'
            command = [program, "-c", configuration(directory, name.replace(", ", "-"), port, workers)]
        servers[name] = Server(command, port, options.cpu)
    results = {name: [] for name in servers}
    try:
        for turn in range(options.rounds + 1):
            names = list(servers)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                result = measure(servers[name], load, options)
                # The first round warms up.
                if turn:
                    results[name].append(result)
    finally:
        for server in servers.values():
            server.process.terminate()
    print_costs(results)


def measure(server, load, options):
    """Returns births a second, and microseconds of CPU for each: of the first process, of the ended, of the others."""
    before = server.cpu()
    arguments = ["taskset", "-c", options.cpu, load, server.port, options.births, 16]
    said = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=True)
    seconds, failed = said.stdout.split()
    if int(failed):
        sys.exit(f"{failed} requests have failed")
    # The last processes end.
    time.sleep(0.3)
    parts = [(after - first) / options.births for first, after in zip(before, server.cpu())]
    return options.births / float(seconds), sum(parts), parts


def print_costs(results):
    print("server            births/s   us of CPU each: first process, ended processes, others")
    for name, rounds in results.items():
        rate, each = (statistics.median(found[i] for found in rounds) for i in (0, 1))
        parts = [statistics.median(found[2][i] for found in rounds) for i in range(3)]
        print(f"{name:16} {rate:8.0f} {each:8.0f}:" + "".join(f" {part:6.0f}" for part in parts))
    names = list(results)
    for name in names[1:]:
        for other in names[: names.index(name)]:
            ratios = [one[1] / two[1] for one, two in zip(results[name], results[other])]
            print(f"{name} / {other}: {with_quartiles(ratios, 2)}")
    print_goals(results)


def print_goals(results):
    forked = results["fdpassd, fork"]
    rates = [found[0] for found in forked]
    reached = verdict(statistics.median(rates) >= RATE)
    print(f"goal: births a second, at least {RATE}: {with_quartiles(rates, 0)}: {reached}")
    for other, most in RATIOS.items():
        ratios = [one[1] / two[1] for one, two in zip(forked, results[other])]
        reached = verdict(statistics.median(ratios) <= most)
        print(f"goal: CPU time against {other}, at most {most}: {with_quartiles(ratios, 2)}: {reached}")


def with_quartiles(values, digits):
    values = sorted(values)
    low, high = values[len(values) // 4], values[-1 - len(values) // 4]
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def verdict(is_met):
    return "met" if is_met else "MISSED"


def held(options):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for start in "exec", "fork":
        found = [held_by(options, start, clients) for clients in options.clients]
    # Those of fork are the last ones.
    few, many = found[0], found[-1]
    growth = tail(many) / tail(few)
    print(f"goal: between two waits less than {HELD} us: at most {many[-1]:.0f} us: {verdict(many[-1] < HELD)}")
    print(f"goal: not more with more clients: p95 {growth:.2f} times as much: {verdict(growth <= GROWTH)}")


def held_by(options, start, clients):
    """Adds workers one at a time, and prints how long the master was held between two waits of its loop."""
    directory, port = Path(tempfile.mkdtemp()), free_port()
    workers = f'count = 2, start = "{start}", rebalance = "manual"'
    path = configuration(directory, "held", port, workers)
    # With a real-time priority, so that other programs do not hold it up. Its workers have none.
    command = ["chrt", "--reset-on-fork", "--fifo", "1", options.fdpassd, "-c", path]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await_server(port)
        sockets = [connected(port, number) for number in range(clients)]
        time.sleep(1)
        events = "syscalls:sys_enter_epoll_wait,syscalls:sys_exit_epoll_wait"
        record = ["perf", "record", "-q", "-p", str(process.pid), "-e", events, "-o", str(directory / "perf")]
        perf = subprocess.Popen(record, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1)
        ctl = Path(options.fdpassd).with_name("fdpassctl")
        for number in range(options.births):
            scale = [ctl, "-s", directory / "held.sock", "scale", str(3 + number)]
            subprocess.run(list(map(str, scale)), capture_output=True, check=True)
        perf.send_signal(2)
        perf.wait()
        found = iterations(directory / "perf")
        print(
            f"{start}, {len(sockets):5} clients: held for {sum(found) / options.births:4.0f} us a birth in all, "
            f"between two waits {statistics.median(found):.0f} us, p95 {tail(found):.0f} us, "
            f"at most {found[-1]:.0f} us"
        )
        return found
    finally:
        process.terminate()
        process.wait()


def tail(found):
    """Returns the 95th percentile of sorted values."""
    return found[len(found) * 95 // 100]


def connected(port, number):
    client = socket.socket()
    client.bind((f"127.0.{2 + number // 4000}.1", 0))
    client.connect(("127.0.0.1", port))
    return client


def iterations(data):
    """Returns the microseconds between the end of each wait and the next one, sorted."""
    script = ["perf", "script", "-i", str(data), "-F", "time,event"]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    found, woken = [], None
    for at, event in (line.split(":", 1) for line in lines):
        if "exit" in event:
            woken = float(at)
        elif woken is not None:
            found.append((float(at) - woken) * 1e6)
    return sorted(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fdpassd", default=HERE.parent.parent / "target/release/fdpassd", help="the program")
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("cost", help="CPU time of a process for each request")
    part.add_argument("--baseline", help="an older program, in the same rounds")
    part.add_argument("--births", type=int, default=1500, help="requests in a round")
    part.add_argument("--rounds", type=int, default=9)
    part.add_argument("--workers", type=int, default=4)
    part.add_argument("--cpu", default="1", help="the CPU of servers and load")
    part.set_defaults(run=cost)
    part = parts.add_parser("held", help="how long births hold the master; needs root and perf(1)")
    part.add_argument("--clients", type=int, nargs="+", default=[100, 18000])
    part.add_argument("--births", type=int, default=24)
    part.set_defaults(run=held)
    options = parser.parse_args()
    options.run(options)


main()
