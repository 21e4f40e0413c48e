"""A file system that reads the requests of the kernel (fuse(4)) and answers none but the first. A process that opens a
file in it waits, and if it is killed, it waits uninterruptibly, as with a dead disk. Its argument is an empty directory.
Prints the path of the directory when it is mounted, and a line for each file that is looked up. When this process ends, so
do all that wait."""

import ctypes
import os
import struct
import sys

MNT_DETACH, PR_SET_PDEATHSIG, SIGKILL, INIT, LOOKUP = 2, 1, 9, 26, 1
PARALLEL_LOOKUPS = 1 << 18
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(PR_SET_PDEATHSIG, SIGKILL)
directory = os.fsencode(sys.argv[1])
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
if libc.mount(b"fdpassd-test", directory, b"fuse", 0, options) != 0:
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
# It is reached by this descriptor, so nothing stays mounted.
root = os.open(directory, os.O_PATH)
libc.umount2(directory, MNT_DETACH)
(_, opcode, unique) = struct.unpack_from("<IIQ", os.read(fuse, 1 << 17))
assert opcode == INIT
reply = struct.pack("<4I2H2I2H2I24x", 7, 31, 4096, PARALLEL_LOOKUPS, 8, 8, 4096, 1, 1, 0, 0, 0)
os.write(fuse, struct.pack("<IiQ", 16 + len(reply), 0, unique) + reply)
print(f"/proc/{os.getpid()}/fd/{root}", flush=True)
while True:
    (_, opcode) = struct.unpack_from("<II", os.read(fuse, 1 << 17))
    if opcode == LOOKUP:
        print("looked up", flush=True)
