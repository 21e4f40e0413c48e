#!/usr/bin/env bash
# A subgroup that a service removes from its cgroup while systemd signals the processes of the service.
#
# A service with Delegate=yes may create and remove subgroups of its cgroup. When its main process has ended, systemd walks
# the cgroup and its subgroups, sends SIGTERM to each process, waits TimeoutStopSec= for the processes to end, and only
# then sends SIGKILL (systemd.kill(5), KillMode=control-group).
#
# 1. If no subgroup is removed during the walk, the processes have that time.
# 2. If a process of the service removes an empty subgroup after systemd has opened the subgroup's cgroup.procs and before
#    systemd has read it, read(2) returns ENODEV. systemd completes the walk, logs "Failed to kill control group …,
#    ignoring: No such device", and sends SIGKILL at once, although each process has got SIGTERM. A process that needs
#    300 ms to finish its work is killed.
# 3. `systemctl stop` has the same effect, because systemd walks the cgroup once more when the main process has ended.
#
# The reason is in the source of systemd 252 (252-stable). cg_kill_items() returns the error of cg_read_pid(). In
# cg_kill_recursive() the error of one subgroup replaces the number 1, which means that processes were signalled.
# unit_kill_context() ignores EAGAIN, ESRCH and ENOENT and logs any other error. After an error it waits only for the main
# process and a control process: without them it returns 0, and service_enter_signal() enters the state of SIGKILL at
# once. The source of 255.13 and 256 reads the same. Since systemd's pull request 38134 (July 2025), cg_kill() takes ENODEV
# from read(2) as the end of an empty cgroup. cgroup.kill has no part in it: systemd uses it only for SIGKILL.
#
# So a service whose processes need time after SIGTERM must not remove a subgroup after its main process has ended.
#
# A process of the service waits for that moment by fanotify(7), which holds systemd's read(2). The rounds `kept` do the same
# and remove nothing. The rounds `churn` have no fanotify: a process creates and removes subgroups all the time. How many
# helpers were killed in them, about 0 to 3 of 20, is only printed.
#
# Seen with systemd 252 (252.38 to 252.39, Debian 12) on Linux 6.18. In 257.13 (Debian 13) the behaviour has changed: the
# helper always finishes there, and this script exits with 1.
#
# Needs root, python3 and what tests/systemd/lab needs: the script boots a systemd in namespaces. The variable LAB_BASE
# selects its root file system: host, which is this machine's own, or bookworm (systemd 252) or trixie, which mmdebstrap
# builds in each run unless LAB_DIR is a directory that keeps it [host]. Exits with 1 if the behaviour has changed, and with
# 77 where a lab cannot run.
set -euo pipefail
lab=$(dirname "$0")/../tests/systemd/lab
folder=$(mktemp -d /var/tmp/removed-subgroup.XXXXXX)
export LAB_NAME=removed-subgroup-$$ LAB_DIR=${LAB_DIR:-$folder/lab}
trap '"$lab" down; rm -rf --one-file-system "$folder"' EXIT

# The program of the service: its arguments are `kept`, `removed` or `churn`, and the prefix of the paths of its files.
cat > "$folder/service.py" <<'PYTHON'
import ctypes, fcntl, os, select, signal, socket, struct, sys

# fanotify(7)
FAN_CLASS_CONTENT, FAN_MARK_ADD, FAN_ACCESS_PERM, FAN_ALLOW, AT_FDCWD = 4, 1, 0x20000, 1, -100

mode, prefix = sys.argv[1:]
with open("/proc/self/cgroup") as file:
    path = next(line[3:-1] for line in file if line.startswith("0::"))
cgroup = f"/sys/fs/cgroup{path}"


def is_finished():
    return os.path.exists(f"{prefix}.finished")


def helper():
    """Finishes its work in 300 ms when it gets SIGTERM."""
    signal.sigwait({signal.SIGTERM})
    select.select([], [], [], 0.3)
    open(f"{prefix}.finished", "w").close()


def call(function, *arguments):
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), function.__name__)
    return result


def watch():
    """Holds each read(2) of the subgroup's cgroup.procs. In the mode `removed` it replaces the subgroup in that time."""
    libc = ctypes.CDLL(None, use_errno=True)
    events = call(libc.fanotify_init, FAN_CLASS_CONTENT, os.O_RDONLY)
    subgroup = f"{cgroup}/subgroup"

    def create():
        os.mkdir(subgroup)
        file, mask = f"{subgroup}/cgroup.procs".encode(), ctypes.c_uint64(FAN_ACCESS_PERM)
        call(libc.fanotify_mark, events, FAN_MARK_ADD, mask, AT_FDCWD, file)

    create()
    report_ready()
    while not is_finished():
        if not select.select([events], [], [], 0.05)[0]:
            continue
        # struct fanotify_event_metadata; its last members are the descriptor of the file and the pid of the reader.
        *_, descriptor, _ = struct.unpack("=IBBHQii", os.read(events, 24))
        if mode == "removed":
            os.rmdir(subgroup)
            create()
        os.write(events, struct.pack("=iI", descriptor, FAN_ALLOW))
        os.close(descriptor)


def churn():
    """Creates and removes subgroups, in the order in which systemd walks them."""
    while not is_finished():
        for number in range(100):
            os.mkdir(f"{cgroup}/{number}")
        report_ready()
        for entry in os.scandir(cgroup):
            if entry.is_dir(follow_symlinks=False):
                os.rmdir(entry.path)


def report_ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(os.environ["NOTIFY_SOCKET"])
        manager.send(b"READY=1")


# The lock ends with the last process of the service.
lock = open(f"{prefix}.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
for work in helper, churn if mode == "churn" else watch:
    if os.fork() == 0:
        work()
        os._exit(0)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
while True:
    signal.pause()
PYTHON

inside() { "$lab" exec "$@" </dev/null; }

# run_rounds NAME NUMBER MODE COMMAND…: in each round, starts the service, runs the command on it, and waits for its
# processes. Sets `killed` to the number of rounds in which the helper was killed; the journal of the last one of them is
# in $folder/killed.
run_rounds() {
    local name=$1 number=$2 mode=$3 unit prefix found
    shift 3
    killed=0
    for unit in $(seq -f "$name-%g.service" "$number"); do
        prefix=/run/${unit%.service}
        inside systemd-run --quiet --collect --unit "$unit" --property Type=notify --property NotifyAccess=all \
            --property Delegate=yes --property TimeoutStopSec=30 python3 /run/service.py "$mode" "$prefix"
        inside "$@" "$unit"
        inside flock --timeout 60 "$prefix.lock" true || { echo "$unit: a process does not end"; exit 1; }
        inside journalctl --sync
        inside journalctl --quiet --no-hostname --output short-precise --unit "$unit" > "$folder/journal"
        found=killed
        ! inside test -e "$prefix.finished" || found=finished
        [[ $found != killed ]] || { killed=$((killed + 1)) && cp "$folder/journal" "$folder/killed"; }
        # The message and the end of the helper belong together.
        if [[ $found == killed ]] && ! grep -q 'Failed to kill control group .*: No such device' "$folder/journal"; then
            changed+=("$unit: the helper was killed, and systemd does not report ENODEV")
        fi
    done
    echo "$name ($*): the helper was killed at once in $killed of $number rounds"
}

"$lab" up "${LAB_BASE:-host}"
"$lab" push "$folder/service.py" /run/service.py
echo "$(inside systemctl --version | sed -n 1p), Linux $(uname -r)"
changed=()
kill_main=(systemctl kill --signal KILL --kill-whom main)
run_rounds kept 5 kept "${kill_main[@]}"
((killed == 0)) || changed+=("a helper was killed although no subgroup was removed")
run_rounds removed 5 removed "${kill_main[@]}"
((killed > 0)) || changed+=("no helper was killed when a subgroup was removed")
[[ ! -e $folder/killed ]] || cat "$folder/killed"
run_rounds kept-stop 5 kept systemctl stop
((killed == 0)) || changed+=("systemctl stop: a helper was killed although no subgroup was removed")
run_rounds removed-stop 5 removed systemctl stop
((killed > 0)) || changed+=("systemctl stop: no helper was killed when a subgroup was removed")
run_rounds churn 20 churn "${kill_main[@]}"
if ((${#changed[@]} > 0)); then
    printf 'changed: %s\n' "${changed[@]}"
    exit 1
fi
