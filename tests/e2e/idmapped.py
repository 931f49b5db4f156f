"""idmapped.py FOLDER TARGET: mounts FOLDER on TARGET with its user and group 0 shown as 1000, makes a file there as 1000, and says who
owns it in both places."""

import atexit
import ctypes
import os
import signal
import struct
import sys

OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
libc = ctypes.CDLL(None, use_errno=True)


def call(what, number, *arguments):
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


folder, target = sys.argv[1:3]
ready, told = os.pipe()
child = os.fork()
if child == 0:
    if libc.unshare(0x10000000) != 0:
        os._exit(1)
    os.write(told, b"x")
    os.close(told)
    signal.pause()
# A call that fails ends the script: the child must not outlive it and keep its output open.
atexit.register(os.kill, child, 9)
os.read(ready, 1)
for kind in ("uid_map", "gid_map"):
    with open(f"/proc/{child}/{kind}", "w") as ids:
        ids.write("0 1000 1")
namespace = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
tree = call("open_tree", OPEN_TREE, -100, folder.encode(), 0x80001)
call("mount_setattr", MOUNT_SETATTR, tree, b"", 0x1000, struct.pack("QQQQ", 0x100000, 0, 0, namespace), 32)
call("move_mount", MOVE_MOUNT, tree, b"", -100, target.encode(), 0x4)
worker = os.fork()
if worker == 0:
    os.setgid(1000)
    os.setuid(1000)
    with open(target + "/made", "w") as made:
        made.write("made")
    os._exit(0)
status = os.waitpid(worker, 0)[1]
for place in (folder, target):
    found = os.stat(place + "/made")
    print(found.st_uid, found.st_gid)
print(os.stat(target + "/there").st_uid, status)
libc.umount2(target.encode(), 2)
