"""handles.py name PATH: prints the handle of a file. handles.py open MOUNTPOINT HANDLE: opens it and prints its content and inode number.
handles.py list MOUNTPOINT HANDLE: opens a directory and prints its path and what is in it. An error is printed by its name."""

import ctypes
import errno
import os
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
HANDLE_BYTES = 128


def name(path):
    handle = ctypes.create_string_buffer(8 + HANDLE_BYTES)
    struct.pack_into("I", handle, 0, HANDLE_BYTES)
    mount = ctypes.c_int()
    if libc.name_to_handle_at(-100, path.encode(), handle, ctypes.byref(mount), 0) < 0:
        return errno.errorcode[ctypes.get_errno()]
    return handle.raw[: 8 + struct.unpack_from("I", handle, 0)[0]].hex()


def opened(mountpoint, handle, flags):
    directory = os.open(mountpoint, os.O_RDONLY)
    handle = ctypes.create_string_buffer(bytes.fromhex(handle))
    return libc.open_by_handle_at(directory, handle, flags)


what, *arguments = sys.argv[1:]
if what == "name":
    print(name(*arguments))
    sys.exit()
file = opened(*arguments, os.O_RDONLY)
if file < 0:
    print(errno.errorcode[ctypes.get_errno()])
elif what == "open":
    print(os.read(file, 1000).decode(), os.fstat(file).st_ino)
else:
    print(os.readlink(f"/proc/self/fd/{file}"), *sorted(os.listdir(file)))
