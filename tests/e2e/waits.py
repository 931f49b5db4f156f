"""Makes one system call in a folder of a mount, after it was told to: waits.py OPERATION FOLDER."""

import fcntl
import mmap
import os
import signal
import sys

name, folder = sys.argv[1:]
# A shell starts what it runs in the background with SIGINT ignored, and Python leaves that so.
signal.signal(signal.SIGINT, signal.default_int_handler)


def path(file):
    return os.path.join(folder, file)


def opened(file, flags=os.O_RDWR):
    return os.open(path(file), flags)


def prepare():
    """Looks up what the call needs, and returns the call."""
    for file in ("big", "small", "file", "link", "gone", "empty"):
        os.lstat(path(file))
    fd = opened("file")
    if name == "stat":
        return lambda: os.stat(path("sub/deep"))
    if name == "open":
        return lambda: opened("small", os.O_RDONLY)
    if name == "create":
        return lambda: opened("new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    if name == "read_direct":
        big = opened("big", os.O_RDONLY)
        return lambda: os.pread(big, 100_000, 2_000_000)
    if name in ("read_pages", "fault"):
        small = opened("small", os.O_RDONLY)
        if name == "read_pages":
            return lambda: os.pread(small, 100, 700_000)
        pages = mmap.mmap(small, 900_000, mmap.MAP_SHARED, mmap.PROT_READ)
        return lambda: pages[700_000]
    if name == "readdir":
        return lambda: os.listdir(path("sub"))
    if name == "fsync":
        return lambda: (os.write(fd, b"written"), os.fsync(fd))
    if name == "close":
        return lambda: (os.write(fd, b"written"), os.close(fd))
    if name == "write_sync":
        sync = opened("file", os.O_RDWR | os.O_SYNC)
        return lambda: os.write(sync, b"written")
    if name == "write_full":
        return lambda: [os.write(fd, bytes(1 << 20)) for _ in range(100)]
    if name == "rename":
        return lambda: os.rename(path("gone"), path("renamed"))
    if name == "unlink":
        return lambda: os.unlink(path("gone"))
    if name == "rmdir":
        return lambda: os.rmdir(path("empty"))
    if name == "mkdir":
        return lambda: os.mkdir(path("made"))
    if name == "mkfifo":
        return lambda: os.mkfifo(path("pipe"))
    if name == "symlink":
        return lambda: os.symlink("file", path("other"))
    if name == "hardlink":
        return lambda: os.link(path("file"), path("hard"))
    if name == "readlink":
        return lambda: os.readlink(path("link"))
    if name == "truncate":
        return lambda: os.ftruncate(fd, 10)
    if name == "chmod":
        return lambda: os.fchmod(fd, 0o600)
    if name == "utime":
        return lambda: os.utime(fd, (1, 1))
    if name == "setxattr":
        return lambda: os.setxattr(fd, "user.a", b"b")
    if name == "getxattr":
        return lambda: os.getxattr(fd, "user.wormhole.blake3")
    if name == "fallocate":
        return lambda: os.posix_fallocate(fd, 0, 1000)
    if name == "seek_data":
        return lambda: os.lseek(fd, 0, os.SEEK_DATA)
    if name == "copy":
        other = opened("small", os.O_RDONLY)
        return lambda: os.copy_file_range(other, fd, 1000)
    if name == "lock":
        return lambda: fcntl.lockf(fd, fcntl.LOCK_EX)
    if name == "try_lock":
        return lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if name == "unlock":
        fcntl.lockf(fd, fcntl.LOCK_EX)
        return lambda: fcntl.lockf(fd, fcntl.LOCK_UN)
    if name == "fsyncdir":
        directory = os.open(folder, os.O_RDONLY)
        return lambda: os.fsync(directory)
    raise ValueError(name)


call = prepare()
print("ready", flush=True)
sys.stdin.readline()
try:
    call()
except OSError as error:
    print(error, flush=True)
print("done", flush=True)
os._exit(0)
