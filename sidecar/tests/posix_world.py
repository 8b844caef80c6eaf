"""System calls on one directory, done alike on any file system: what a state machine drives on two of them side by side.

Each operation answers (errno, result), where the result holds nothing that may differ between file systems (inode numbers, times,
sizes of directories). Descriptors live in numbered slots. `Actor`s are users whom the calling process becomes for one call.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
OMIT = "omit"
NOW = "now"
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Actor(NamedTuple):
    """A user with groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


ROOT = Actor(0, 0, (0,))


@contextlib.contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Become *actor*, with the capabilities that change of user takes away, and root again."""
    if not actor.uid:
        yield
        return
    os.setgroups(list(actor.groups))
    os.setegid(actor.gid)
    os.seteuid(actor.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([0])


def check(result: int) -> int:
    """The result of a call of libc; OSError when it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(source: bytes, target: bytes, flags: int) -> None:
    """renameat2(2)."""
    check(_libc.renameat2(AT_FDCWD, source, AT_FDCWD, target, flags))


def fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    """fallocate(2)."""
    check(_libc.fallocate(fd, mode, offset, size))


def link_descriptor(fd: int, path: bytes) -> None:
    """Give an open file a name, as open(2) shows for O_TMPFILE."""
    check(_libc.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, path, AT_SYMLINK_FOLLOW))


def utimensat(path: bytes, times: Sequence[int | str], follow: bool) -> None:
    """utimensat(2) with `NOW`, `OMIT`, or nanoseconds for atime and mtime."""
    pairs = []
    for time in times:
        if isinstance(time, str):
            pairs += [0, _UTIME_NOW if time == NOW else _UTIME_OMIT]
        else:
            pairs += divmod(time, 10**9)
    check(_libc.utimensat(AT_FDCWD, path, (ctypes.c_int64 * 4)(*pairs), 0 if follow else 0x100))


def shown(st: os.stat_result) -> tuple[Any, ...]:
    """What stat(2) says that must be equal everywhere."""
    size = -1 if stat.S_ISDIR(st.st_mode) else st.st_size
    return st.st_mode, st.st_uid, st.st_gid, st.st_nlink, size, st.st_rdev


class World:
    """One file system, below *top*."""

    def __init__(self, top: Path) -> None:
        self.top = bytes(top)
        self.slots: dict[int, int] = {}

    def do(self, actor: Actor, name: str, *args: Any) -> tuple[int, Any]:
        """(errno or 0, result) of an operation."""
        call: Callable[..., Any] = getattr(self, name)
        try:
            with acting(actor):
                return 0, call(*args)
        except OSError as error:
            return error.errno or -1, None

    def path(self, names: Sequence[bytes]) -> bytes:
        return b"/".join((self.top, *names))

    def close_all(self) -> None:
        for slot in list(self.slots):
            self.close(slot)

    # -- descriptors --------------------------------------------------------------------------------------------

    def _fd(self, slot: int) -> int:
        if slot not in self.slots:
            raise OSError(errno.EBADF, "no such slot")
        return self.slots[slot]

    def _keep(self, slot: int, fd: int) -> None:
        if slot in self.slots:
            os.close(self.slots.pop(slot))
        self.slots[slot] = fd

    def open(self, names: Sequence[bytes], flags: int, mode: int, slot: int) -> None:
        self._keep(slot, os.open(self.path(names), flags | os.O_NONBLOCK, mode))

    def tmpfile(self, names: Sequence[bytes], flags: int, slot: int) -> None:
        self._keep(slot, os.open(self.path(names), os.O_TMPFILE | os.O_RDWR | flags, 0o640))

    def name_descriptor(self, slot: int, names: Sequence[bytes]) -> None:
        link_descriptor(self._fd(slot), self.path(names))

    def dup(self, slot: int, other: int) -> None:
        self._keep(other, os.dup(self._fd(slot)))

    def close(self, slot: int) -> None:
        fd = self._fd(slot)
        del self.slots[slot]
        os.close(fd)

    def read(self, slot: int, size: int) -> bytes:
        return os.read(self._fd(slot), size)

    def write(self, slot: int, data: bytes) -> int:
        return os.write(self._fd(slot), data)

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        return os.pread(self._fd(slot), size, offset)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self._fd(slot), data, offset)

    def append(self, slot: int, on: bool) -> None:
        fd = self._fd(slot)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND if on else flags & ~os.O_APPEND)

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self._fd(slot), offset, whence)

    def ftruncate(self, slot: int, length: int) -> None:
        os.ftruncate(self._fd(slot), length)

    def fallocate(self, slot: int, mode: int, offset: int, size: int) -> None:
        fallocate(self._fd(slot), mode, offset, size)

    def copy_file_range(self, source: int, target: int, size: int, offset: int, position: int) -> int:
        copied = 0
        while copied < size:
            count = os.copy_file_range(
                self._fd(source), self._fd(target), size - copied, offset + copied, position + copied
            )
            if not count:
                break
            copied += count
        return copied

    def sendfile(self, source: int, target: int, offset: int, size: int) -> int:
        return os.sendfile(self._fd(target), self._fd(source), offset, size)

    def fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def fstat(self, slot: int) -> tuple[Any, ...]:
        return shown(os.fstat(self._fd(slot)))

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._fd(slot), mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self._fd(slot), uid, gid)

    def map(self, slot: int, offset: int, data: bytes, shared: bool) -> bytes:
        """Write through a mapping, and what it then shows around."""
        fd = self._fd(slot)
        size = os.fstat(fd).st_size
        if size <= offset:
            return b""
        kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        with mmap.mmap(fd, size, kind, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            data = data[: size - offset]
            mapped[offset : offset + len(data)] = data
            return mapped[max(offset - 10, 0) : offset + len(data) + 10]

    def holes(self, slot: int) -> bool:
        """Whether all bytes outside of what SEEK_DATA and SEEK_HOLE call data are zeros."""
        fd = self._fd(slot)
        position = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            return self._zeros_between(fd, os.fstat(fd).st_size)
        finally:
            os.lseek(fd, position, os.SEEK_SET)

    def _zeros_between(self, fd: int, size: int) -> bool:
        at = 0
        while at < size:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = size
            if os.pread(fd, data - at, at).strip(b"\0"):
                return False
            at = os.lseek(fd, data, os.SEEK_HOLE) if data < size else size
        return True

    # -- names --------------------------------------------------------------------------------------------------

    def mkdir(self, names: Sequence[bytes], mode: int) -> None:
        os.mkdir(self.path(names), mode)

    def rmdir(self, names: Sequence[bytes]) -> None:
        os.rmdir(self.path(names))

    def unlink(self, names: Sequence[bytes]) -> None:
        os.unlink(self.path(names))

    def mknod(self, names: Sequence[bytes], mode: int, device: int) -> None:
        os.mknod(self.path(names), mode, device)

    def symlink(self, target: bytes, names: Sequence[bytes]) -> None:
        os.symlink(target, self.path(names))

    def readlink(self, names: Sequence[bytes]) -> bytes:
        return os.readlink(self.path(names))

    def link(self, names: Sequence[bytes], other: Sequence[bytes], follow: bool) -> None:
        flags = AT_SYMLINK_FOLLOW if follow else 0
        check(_libc.linkat(AT_FDCWD, self.path(names), AT_FDCWD, self.path(other), flags))

    def rename(self, names: Sequence[bytes], other: Sequence[bytes], flags: int) -> None:
        renameat2(self.path(names), self.path(other), flags)

    def listdir(self, names: Sequence[bytes]) -> list[tuple[bytes, bool, bool, bool]]:
        with os.scandir(self.path(names)) as entries:
            return sorted(
                (e.name, e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False), e.is_symlink())
                for e in entries
            )

    # -- attributes ---------------------------------------------------------------------------------------------

    def stat(self, names: Sequence[bytes], follow: bool) -> tuple[Any, ...]:
        return shown(os.stat(self.path(names), follow_symlinks=follow))

    def access(self, names: Sequence[bytes], mode: int) -> bool:
        return os.access(self.path(names), mode, effective_ids=True)

    def chmod(self, names: Sequence[bytes], mode: int) -> None:
        os.chmod(self.path(names), mode)

    def chown(self, names: Sequence[bytes], uid: int, gid: int, follow: bool) -> None:
        os.chown(self.path(names), uid, gid, follow_symlinks=follow)

    def utimens(self, names: Sequence[bytes], atime: int | str, mtime: int | str, follow: bool) -> tuple[int, int]:
        path = self.path(names)
        utimensat(path, (atime, mtime), follow)
        st = os.stat(path, follow_symlinks=follow)
        return (0 if atime in (NOW, OMIT) else st.st_atime_ns, 0 if mtime in (NOW, OMIT) else st.st_mtime_ns)

    def truncate(self, names: Sequence[bytes], length: int) -> None:
        os.truncate(self.path(names), length)

    def setxattr(self, names: Sequence[bytes], name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self.path(names), name, value, flags, follow_symlinks=False)

    def getxattr(self, names: Sequence[bytes], name: bytes) -> bytes:
        return os.getxattr(self.path(names), name, follow_symlinks=False)

    def listxattr(self, names: Sequence[bytes]) -> list[str]:
        return sorted(os.listxattr(self.path(names), follow_symlinks=False))

    def removexattr(self, names: Sequence[bytes], name: bytes) -> None:
        os.removexattr(self.path(names), name, follow_symlinks=False)

    # -- the whole ----------------------------------------------------------------------------------------------

    def tree(self, *, content: bool) -> dict[bytes, tuple[Any, ...]]:
        """Everything that is seen: for each path what stat says, which paths are the same inode, extended attributes, and with
        *content* what files hold."""
        found: dict[bytes, tuple[Any, ...]] = {}
        inodes: dict[int, bytes] = {}

        def take(path: bytes) -> None:
            st = os.lstat(path)
            relative = path[len(self.top) :]
            first = inodes.setdefault(st.st_ino, relative)
            names = sorted(os.listxattr(path, follow_symlinks=False))
            attributes = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
            held: bytes = b""
            if stat.S_ISLNK(st.st_mode):
                held = os.readlink(path)
            elif stat.S_ISREG(st.st_mode) and content:
                with open(path, "rb") as file:
                    held = file.read()
            found[relative] = (*shown(st), first, attributes, held)
            if stat.S_ISDIR(st.st_mode):
                for name in sorted(os.listdir(path)):
                    take(path + b"/" + name)

        take(self.top)
        return found

    def times(self) -> dict[tuple[bytes, int], tuple[int, int]]:
        """mtime and ctime of everything, by path and inode."""
        found: dict[tuple[bytes, int], tuple[int, int]] = {}
        for directory, names, files in os.walk(self.top):
            for path in (directory, *(os.path.join(directory, name) for name in (*names, *files))):
                st = os.lstat(path)
                found[path[len(self.top) :], st.st_ino] = st.st_mtime_ns, st.st_ctime_ns
        return found
