"""Makes single system calls in a folder and prints a line for each: what it is called, and what came of it.

The same calls in two folders of equal file systems print the same lines. calls.rs compares a mount with a local folder so.
"""

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
ANN, BOB = 1000, 1001
CASES = []


def case(needs_root=False):
    """Registers a call under its function's name; some make sense for root alone."""

    def register(function):
        if not needs_root or os.getuid() == 0:
            CASES.append((function.__name__.replace("_", " "), function))
        return function

    return register


def told(error):
    # Two names of one number.
    return "EOPNOTSUPP" if error.errno == errno.ENOTSUP else errno.errorcode.get(error.errno, error.errno)


def result(function, *arguments):
    """What a call gives, or the name of its error."""
    try:
        return function(*arguments)
    except OSError as error:
        return told(error)


def system_call(function, *arguments):
    """A call of the C library that says -1 where it fails."""
    given = function(*arguments)
    if given < 0:
        raise OSError(ctypes.get_errno(), function.__name__)
    return given


def write(path, content=b"x" * 10_000):
    with open(path, "wb") as file:
        file.write(content)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def mode(path):
    return oct(os.lstat(path).st_mode)


def as_user(user, function, *arguments, groups=()):
    """What a call gives in a process of another user."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups(list(groups))
                os.setgid(user)
                os.setuid(user)
            os.write(theirs, repr(result(function, *arguments)).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    given = os.read(ours, 9999).decode()
    os.waitpid(child, 0)
    os.close(ours)
    return given


def shell(script):
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


def rename(old, new, flags):
    return system_call(LIBC.renameat2, AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags)


@case()
def rename_noreplace():
    write("a", b"A")
    write("b", b"B")
    return result(rename, "a", "b", 1), result(rename, "a", "c", 1), read("c")


@case()
def rename_exchange():
    write("a", b"A")
    write("b", b"B")
    os.mkdir("folder")
    write("folder/inside", b"I")
    files = rename("a", "b", 2), read("a"), read("b")
    kinds = rename("a", "folder", 2), read("a/inside"), read("folder")
    return files, kinds, result(rename, "b", "missing", 2), result(rename, "a", "b", 3)


@case(needs_root=True)
def rename_whiteout():
    write("a")
    return result(rename, "a", "b", 4), sorted(os.listdir("."))


FALLOCATE_MODES = {
    "allocate": 0,
    "keep size": 1,
    "punch": 3,
    "punch and grow": 2,
    "zero": 0x10,
    "zero keep size": 0x11,
    "collapse": 8,
    "insert": 0x20,
}


def allocated(how, offset, length):
    write("f", bytes(range(256)) * 4096)
    file = os.open("f", os.O_RDWR)
    try:
        system_call(LIBC.fallocate, file, how, offset, length)
        found = os.fstat(file)
        content = hashlib.sha256(os.pread(file, 1 << 22, 0)).hexdigest()[:12]
        return found.st_size, found.st_blocks, content
    finally:
        os.close(file)


for name, how in FALLOCATE_MODES.items():

    def fallocate(how=how):
        places = [(65536, 131072), (1000, 5000), (1 << 20, 1 << 20)]
        return [result(allocated, how, offset, length) for offset, length in places]

    CASES.append((f"fallocate {name}", fallocate))


@case()
def fallocate_nonsense():
    places = [(0, 0), (-1, 10), ((1 << 63) - 10, 5)]
    return [result(allocated, 0, offset, length) for offset, length in places]


@case()
def fallocate_for_readers():
    write("f")
    return result(lambda: system_call(LIBC.fallocate, os.open("f", os.O_RDONLY), 0, 0, 10))


@case()
def tmpfile():
    file = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(file, b"linked later")
    path = f"/proc/self/fd/{file}".encode()
    system_call(LIBC.linkat, AT_FDCWD, path, AT_FDCWD, b"linked", AT_SYMLINK_FOLLOW)
    return read("linked")


@case()
def direct_writes():
    write("f", bytes(1 << 20))
    file = os.open("f", os.O_RDWR | os.O_DIRECT)
    pages = mmap.mmap(-1, 65536)
    pages.write(b"z" * 65536)
    return os.pwritev(file, [pages], 4096), os.preadv(file, [pages], 4096), read("f").count(b"z")


@case()
def synchronous_writes():
    given = []
    for flag in (os.O_SYNC, os.O_DSYNC):
        file = os.open("f", os.O_RDWR | os.O_CREAT | flag)
        given.append((os.write(file, b"abc"), read("f")))
    return given


@case()
def flags_of_open():
    write("f", b"content")
    os.chmod("f", 0o644)
    return [
        result(os.open, "f", os.O_CREAT | os.O_EXCL),
        result(os.open, "f", os.O_DIRECTORY),
        result(os.open, ".", os.O_RDWR),
        result(os.open, "missing", os.O_RDWR),
        os.fstat(os.open("f", os.O_PATH)).st_size,
        os.fstat(os.open("f", os.O_RDONLY | os.O_NOATIME)).st_size,
        result(os.pread, os.open("f", os.O_WRONLY), 1, 0),
        result(os.pwrite, os.open("f", os.O_RDONLY), b"1", 0),
        os.fstat(os.open("f", os.O_RDWR | os.O_TRUNC)).st_size,
    ]


@case()
def what_is_made_without_permissions_can_be_written():
    given = []
    for permissions in (0o000, 0o444):
        file = os.open(f"f{permissions}", os.O_CREAT | os.O_RDWR | os.O_EXCL, permissions)
        given.append((os.write(file, b"hi"), os.pread(file, 2, 0), mode(f"f{permissions}")))
    return given


@case()
def a_file_without_a_name():
    write("f", b"12345")
    file = os.open("f", os.O_RDWR)
    os.unlink("f")
    os.pwrite(file, b"ABC", 5)
    given = [os.fstat(file).st_nlink, os.pread(file, 20, 0)]
    os.ftruncate(file, 3)
    os.fchmod(file, 0o600)
    os.utime(file, (1, 2))
    os.fsync(file)
    again = os.open(f"/proc/self/fd/{file}", os.O_RDWR)
    os.pwrite(again, b"again", 3)
    given.append((os.fstat(file).st_size, os.pread(file, 20, 0)))
    os.setxattr(file, "user.a", b"v")
    system_call(LIBC.fallocate, file, 0, 0, 100)
    found = os.fstat(file)
    given.append((os.getxattr(file, "user.a"), found.st_size, oct(found.st_mode)))
    path = f"/proc/self/fd/{file}".encode()
    given.append(result(system_call, LIBC.linkat, AT_FDCWD, path, AT_FDCWD, b"g", AT_SYMLINK_FOLLOW))
    return given


@case()
def a_mapped_file_without_a_name():
    write("f", b"q" * 8192)
    file = os.open("f", os.O_RDWR)
    pages = mmap.mmap(file, 8192)
    os.unlink("f")
    pages[0:3] = b"abc"
    pages.flush()
    return os.pread(file, 4, 0)


@case()
def a_file_that_another_replaced():
    write("new", b"1")
    write("f", b"2")
    file = os.open("f", os.O_RDWR)
    os.rename("new", "f")
    given = os.pread(file, 1, 0), read("f"), os.fstat(file).st_nlink
    os.pwrite(file, b"x", 0)
    return given, os.pread(file, 1, 0), read("f")


@case()
def one_of_two_names():
    write("f", b"1")
    os.link("f", "g")
    file = os.open("f", os.O_RDWR)
    os.unlink("f")
    os.pwrite(file, b"Z", 0)
    return os.fstat(file).st_nlink, read("g"), os.read(os.open(f"/proc/self/fd/{file}", os.O_RDONLY), 1)


@case()
def a_removed_directory():
    os.mkdir("d")
    folder = os.open("d", os.O_RDONLY)
    os.rmdir("d")
    made = result(lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    return os.fstat(folder).st_nlink, result(os.listdir, folder), made


@case(needs_root=True)
def set_group_id_on_a_directory():
    os.mkdir("d")
    os.chown("d", 0, 1234)
    os.chmod("d", 0o2775)
    write("d/f")
    os.mkdir("d/d")
    os.symlink("x", "d/l")
    os.mkfifo("d/p")
    return [(mode(f"d/{name}"), os.lstat(f"d/{name}").st_gid) for name in "fdlp"]


@case(needs_root=True)
def sticky_directory():
    os.mkdir("d")
    os.chmod("d", 0o1777)
    write("d/root")
    return [
        as_user(ANN, os.unlink, "d/root"),
        as_user(ANN, write, "d/ann"),
        as_user(BOB, os.unlink, "d/ann"),
        as_user(BOB, os.rename, "d/ann", "d/bob"),
        as_user(ANN, os.rename, "d/ann", "d/still"),
        os.stat("d/still").st_uid,
        as_user(ANN, os.unlink, "d/still"),
    ]


def write_one_byte(path):
    file = os.open(path, os.O_RDWR)
    os.write(file, b"1")
    os.close(file)


def grow(path):
    file = os.open(path, os.O_RDWR)
    system_call(LIBC.fallocate, file, 0, 0, 20_000)
    os.close(file)


def copy_into(path):
    source, target = os.open("source", os.O_RDONLY), os.open(path, os.O_RDWR)
    os.copy_file_range(source, target, 100, 0, 0)
    os.close(target)


@case(needs_root=True)
def set_id_bits_go_with_a_change():
    write("source")
    os.chmod("source", 0o644)
    write("f")
    os.chown("f", ANN, ANN)
    given = []
    for change in (
        lambda: as_user(ANN, write_one_byte, "f"),
        lambda: as_user(ANN, os.truncate, "f", 3),
        lambda: as_user(ANN, grow, "f"),
        lambda: as_user(ANN, copy_into, "f"),
        lambda: as_user(ANN, os.chmod, "f", 0o6755),
        lambda: os.chown("f", ANN, ANN),
        lambda: write_one_byte("f"),
    ):
        # Without group-execute the second bit does not lend a program its group.
        for bits in (0o6755, 0o6745, 0o2644):
            os.chmod("f", bits)
            given.append((change(), mode("f")))
    return given


@case(needs_root=True)
def permissions_of_files():
    write("f")
    os.chmod("f", 0o600)
    given = [
        as_user(ANN, read, "f"),
        as_user(ANN, os.access, "f", os.R_OK),
        as_user(ANN, os.chmod, "f", 0o777),
        as_user(ANN, os.utime, "f", (1, 1)),
        as_user(ANN, os.utime, "f"),
    ]
    os.chown("f", ANN, ANN)
    for owner, group in ((BOB, -1), (-1, ANN), (-1, 2000), (-1, 3000)):
        given.append(as_user(ANN, os.chown, "f", owner, group, groups=[2000]))
    os.chown("f", 0, 2000)
    os.chmod("f", 0o060)
    return given + [as_user(ANN, lambda: len(read("f")), groups=[2000]), as_user(ANN, read, "f")]


@case()
def masks():
    before = os.umask(0o027)
    write("f")
    os.mkdir("d")
    os.mkfifo("p")
    os.umask(before)
    return mode("f"), mode("d"), mode("p")


@case()
def default_acls():
    return shell(
        """mkdir d; setfacl -d -m u:4321:rwx,g:77:rx,m:rx d; umask 077; cd d; touch f; mkdir d; mkfifo p
        getfacl -n f d p; setfacl -m u:55:rw f; chmod 640 f; getfacl -n f; stat -c %A f d p
        setfacl -b f; stat -c %A f; setfacl -k d; getfacl -n d; setfacl -x u:4321 d; cp -a f g; getfacl -n g"""
    )


@case(needs_root=True)
def acls_let_in_and_keep_out():
    write("f", b"secret")
    os.chmod("f", 0o600)
    shell("setfacl -m u:1000:r f")
    given = [as_user(ANN, read, "f"), as_user(BOB, read, "f"), as_user(ANN, write, "f")]
    # The mode shows the mask where the group's permissions were: the group itself has none.
    os.chown("f", 0, BOB)
    given += [mode("f"), as_user(BOB, read, "f")]
    shell("setfacl -b f; chmod 640 f")
    return given + [as_user(ANN, read, "f"), as_user(BOB, read, "f")]


@case()
def time_of_birth():
    found = ctypes.create_string_buffer(256)
    write("f")
    system_call(LIBC.statx, AT_FDCWD, b"f", 0, 0xFFF, found)
    return bool(struct.unpack_from("I", found)[0] & 0x800)


@case()
def data_and_holes():
    file = os.open("f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, 1 << 22)
    os.pwrite(file, b"x" * 4096, 1 << 20)
    os.fsync(file)
    asked = [
        (0, os.SEEK_DATA),
        (0, os.SEEK_HOLE),
        (1 << 20, os.SEEK_HOLE),
        ((1 << 20) + 9, os.SEEK_DATA),
        (2 << 20, os.SEEK_DATA),
        (1 << 22, os.SEEK_HOLE),
        (-1, os.SEEK_DATA),
    ]
    return [result(os.lseek, file, *place) for place in asked], os.fstat(file).st_blocks


@case()
def limits():
    def written_at(offset):
        file = os.open("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        return os.pwrite(file, b"1", offset), os.fsync(file), os.fstat(file).st_size

    def cut_to(size):
        write("f", b"1")
        os.truncate("f", size)
        return os.stat("f").st_size

    sizes = [0, 1 << 32, 1 << 40, 1 << 50, (1 << 63) - 2]
    names = [result(write, "n" * length) for length in (255, 256)]
    targets = [result(os.symlink, "t" * length, f"l{length}") for length in (4095, 4096)]
    return [result(written_at, size) for size in sizes], [result(cut_to, size) for size in sizes], names, targets


@case()
def names_that_are_not_text():
    name = b"\xff\n\x01"
    write(name)
    return os.listdir(b"."), os.unlink(name)


@case()
def appending():
    write("f", b"12345")
    one, other = os.open("f", os.O_RDWR | os.O_APPEND), os.open("f", os.O_RDWR | os.O_APPEND)
    os.write(one, b"a")
    os.write(other, b"b")
    os.write(one, b"c")
    os.ftruncate(one, 7)
    os.write(other, b"e")
    return read("f"), os.lseek(one, 0, os.SEEK_CUR), os.lseek(other, 0, os.SEEK_CUR)


@case()
def appending_by_fcntl():
    write("f", b"12345")
    file = os.open("f", os.O_RDWR)
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    os.write(file, b"X")
    no_longer = os.open("f", os.O_RDWR | os.O_APPEND)
    fcntl.fcntl(no_longer, fcntl.F_SETFL, 0)
    os.pwrite(no_longer, b"Q", 0)
    return read("f")


@case()
def flags_of_one_write():
    given = []
    for flag in (0x2, 0x4, 0x10):  # RWF_DSYNC, RWF_SYNC, RWF_APPEND
        write("f", b"12345")
        file = os.open("f", os.O_RDWR)
        given.append((os.pwritev(file, [b"AB"], 1, flag), read("f")))
    return given


def mapped(size):
    write("f", b"a" * size)
    file = os.open("f", os.O_RDWR)
    pages, others = mmap.mmap(file, size), mmap.mmap(file, size, prot=mmap.PROT_READ)
    pages[size // 2] = ord("b")
    given = [os.pread(file, 1, size // 2)]
    os.pwrite(file, b"c", 1)
    given.append((pages[1:2], others[size // 2 : size // 2 + 1]))
    pages.flush()
    pages.close()
    os.ftruncate(file, size + 5000)
    os.close(file)
    return given, read("f")[:3], len(read("f"))


@case()
def shared_maps():
    return [mapped(size) for size in (5000, 300_000, 3_000_000)]


@case()
def a_map_outlives_its_descriptor():
    write("f", b"a" * 5000)
    file = os.open("f", os.O_RDWR)
    pages = mmap.mmap(file, 5000)
    os.close(file)
    pages[0] = ord("b")
    pages.flush()
    given = read("f")[:1]
    pages[0] = ord("c")
    pages.close()
    return given, read("f")[:1]


@case()
def a_private_map():
    write("f", b"a" * 5000)
    pages = mmap.mmap(os.open("f", os.O_RDONLY), 5000, flags=mmap.MAP_PRIVATE, prot=3)
    pages[0] = ord("b")
    return pages[0:1], read("f")[:1]


@case()
def a_map_beyond_the_end():
    def touch():
        write("f", b"a" * 9000)
        file = os.open("f", os.O_RDWR)
        pages = mmap.mmap(file, 9000)
        os.ftruncate(file, 100)
        return pages[50:51], pages[5000]

    child = os.fork()
    if child == 0:
        touch()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGBUS


@case()
def copies():
    write("f", os.urandom(300_000))
    source, target = os.open("f", os.O_RDWR), os.open("copied", os.O_RDWR | os.O_CREAT)
    given = [os.copy_file_range(source, target, 300_000, 0, 0), read("f") == read("copied")]
    given.append(result(os.copy_file_range, source, source, 1000, 0, 500))
    target, sent = os.open("sent", os.O_RDWR | os.O_CREAT), 0
    while part := os.sendfile(target, source, sent, 300_000):
        sent += part
    ours, theirs = os.pipe()
    target = os.open("spliced", os.O_RDWR | os.O_CREAT)
    part = os.splice(source, theirs, 4096, offset_src=0)
    return given, sent, read("f") == read("sent"), os.splice(ours, target, part) == part > 0


@case()
def syncs():
    write("f")
    file = os.open("f", os.O_RDWR)
    everything = ctypes.c_long(0)
    return [
        result(system_call, LIBC.sync_file_range, file, everything, everything, 7),
        result(system_call, LIBC.syncfs, file),
        result(system_call, LIBC.readahead, file, everything, 4096),
        result(os.posix_fadvise, file, 0, 0, os.POSIX_FADV_DONTNEED),
        result(os.fdatasync, file),
        result(os.fsync, os.open(".", os.O_RDONLY)),
    ]


@case()
def locks():
    write("f")
    file = os.open("f", os.O_RDWR)

    def lock(function, *arguments):
        return as_user(os.getuid(), lambda: function(os.open("f", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, *arguments))

    fcntl.flock(file, fcntl.LOCK_EX)
    given = [lock(fcntl.flock)]
    fcntl.flock(file, fcntl.LOCK_UN)
    given.append(lock(fcntl.flock))
    fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
    return given, lock(fcntl.lockf, 10, 0), lock(fcntl.lockf, 10, 15)


@case()
def extended_attributes():
    write("f")
    given = []
    for name, value, flags in [
        ("user.a", b"1", 0),
        ("user.a", b"2", os.XATTR_CREATE),
        ("user.a", b"3", os.XATTR_REPLACE),
        ("user.missing", b"3", os.XATTR_REPLACE),
        ("user.large", b"x" * 3000, 0),
        ("user.too_large", b"x" * 65_537, 0),
        ("user.empty", b"", 0),
        ("system.foo", b"1", 0),
        ("no namespace", b"1", 0),
        ("user.", b"1", 0),
        ("user." + "n" * 251, b"1", 0),
    ]:
        given.append(result(os.setxattr, "f", name, value, flags))
    given.append([(name, len(os.getxattr("f", name))) for name in sorted(os.listxattr("f"))])
    os.removexattr("f", "user.a")
    os.symlink("x", "l")
    given += [result(os.removexattr, "f", "user.a"), result(os.getxattr, "f", "user.a")]
    given.append(result(lambda: os.setxattr("l", "user.a", b"1", follow_symlinks=False)))
    os.setxattr(".", "user.folder", b"1")
    return given, os.getxattr(".", "user.folder")


@case()
def times():
    write("f")
    given = []
    for accessed, changed in [(123_456_789_012_345_678, -5_000_000_001), (-1, -1_000_000_000), (0, 1 << 61)]:
        os.utime("f", ns=(accessed, changed))
        given.append((os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns))
    return given


@case()
def what_moves_times():
    write("f")
    given = []
    for change in (
        lambda: os.chmod("f", 0o600),
        lambda: os.link("f", "g"),
        lambda: os.rename("g", "h"),
        lambda: write_one_byte("f"),
        lambda: os.setxattr("f", "user.a", b"1"),
        lambda: mapped(5000),
    ):
        os.utime("f", ns=(1, 5))
        before, folder = os.stat("f"), os.stat(".")
        time.sleep(0.02)
        change()
        after = os.stat("f")
        moved = after.st_ctime_ns > before.st_ctime_ns, after.st_mtime_ns > 5
        given.append((moved, os.stat(".").st_mtime_ns > folder.st_mtime_ns))
    file = os.open("f", os.O_WRONLY)
    os.write(file, b"22")
    os.utime(file, ns=(1, 5))
    os.close(file)
    return given, os.stat("f").st_mtime_ns


@case()
def sockets_and_pipes():
    listener, visitor = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind("s")
    listener.listen()
    visitor.connect("s")
    os.mkfifo("p")
    writer = threading.Thread(target=write, args=("p", b"through"))
    writer.start()
    given = read("p")
    writer.join()
    return stat.S_ISSOCK(os.stat("s").st_mode), given


@case(needs_root=True)
def devices():
    os.mknod("zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    return os.stat("zero").st_rdev == os.makedev(1, 5), result(os.mknod, "f", stat.S_IFREG | 0o644)


@case()
def directories_and_names_in_each_others_way():
    os.mkdir("empty")
    os.mkdir("full")
    os.mkdir("full/d")
    write("f")
    os.symlink("x", "l")
    return [
        result(os.link, ".", "../again"),
        result(os.rmdir, "full"),
        result(os.rmdir, "f"),
        result(os.rmdir, "."),
        result(system_call, LIBC.unlink, b"full"),
        result(os.rename, "full", "full/d/x"),
        result(os.rename, "empty", "full"),
        result(os.rename, "full", "f"),
        result(os.rename, "f", "full"),
        result(lambda: os.link("l", "m", follow_symlinks=False)),
        os.readlink("m"),
        os.lstat("l").st_nlink,
        os.stat(".").st_nlink,
        os.stat("full").st_nlink,
    ]


@case()
def deleting_while_listing():
    os.mkdir("d")
    for number in range(300):
        write(f"d/{number}", b"")
    deleted = 0
    with os.scandir("d") as entries:
        for entry in entries:
            os.unlink(entry.path)
            deleted += 1
    return deleted, os.listdir("d"), os.rmdir("d")


@case()
def running_programs():
    script = "printf '#!/bin/sh\\necho ran\\n' >f; chmod +x f; ./f; cp /bin/sleep s; "
    given = shell(script)
    sleeper = subprocess.Popen(["./s", "60"])
    time.sleep(0.2)
    busy = result(os.open, "s", os.O_WRONLY)
    sleeper.kill()
    sleeper.wait()
    return given, busy


@case()
def a_limit_on_file_sizes():
    def beyond():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        file = os.open("f", os.O_RDWR | os.O_CREAT, 0o666)
        return os.write(file, b"x" * 9000), result(os.write, file, b"x")

    return as_user(os.getuid(), beyond)


@case()
def file_handles():
    write("f")
    handle, mount = ctypes.create_string_buffer(200), ctypes.c_int()
    struct.pack_into("I", handle, 0, 128)
    return result(system_call, LIBC.name_to_handle_at, AT_FDCWD, b"f", handle, ctypes.byref(mount), 0)


def asked_of(request, path="f"):
    return result(lambda: fcntl.ioctl(os.open(path, os.O_RDONLY), request, bytearray(64)) and True)


@case()
def attributes_of_chattr():
    write("f")
    return asked_of(0x8008_6601), asked_of(0x8008_6601, ".")


@case()
def maps_of_extents():
    write("f")
    return asked_of(0xC020_660B)


def main():
    os.umask(0o022)
    os.chdir(sys.argv[1])
    for number, (name, function) in enumerate(CASES):
        os.mkdir(f"case {number}")
        os.chdir(f"case {number}")
        try:
            given = function()
        except OSError as error:
            given = told(error)
        os.chdir("..")
        print(f"{name}: {given!r}", flush=True)


main()
