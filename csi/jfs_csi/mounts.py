"""Bind mounts, umount2(2), /proc/self/mountinfo and the abort switch of FUSE connections.

The lowest layer of the driver: system calls by ctypes, because a program that serves gRPC must not fork `mount`. What is
mounted is decided from mountinfo only, never by stat: stat of a dead or hung FUSE mount fails or blocks. Blocking calls;
the asyncio side runs them in threads.
"""

import ctypes
import logging
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jfs_csi.directories import Tree
from jfs_csi.layout import Names

log = logging.getLogger(__name__)

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
# Mounts stacked on one directory that one clean-up takes away; more than a handful never happens by our own doing.
MOST_STACKED = 64

# The same numbers on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_MOUNT_SETATTR = (
    428,
    429,
    430,
    431,
    432,
    442,
)
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_BOTH_EMPTY_PATH = 0x04 | 0x40
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5)): where, of what kind, on which superblock."""

    path: str
    kind: str
    source: str
    device: str  # "major:minor"; the minor of a FUSE mount names its connection
    root: str
    options: str

    @property
    def is_fuse(self) -> bool:
        return self.kind == "fuse" or self.kind.startswith("fuse.")


def mountinfo(text: str | None = None) -> list[Mount]:
    """All mounts of this mount namespace, in the kernel's order (a later one on the same path lies on top)."""
    if text is None:
        # One read(2) per line batch is a consistent enough view: decisions are repeated until they hold.
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    mounts = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        before, after = fields.split(" "), rest.split(" ")
        mounts.append(
            Mount(
                path=_unescape(before[4]),
                kind=after[0],
                source=_unescape(after[1]),
                device=before[2],
                root=_unescape(before[3]),
                options=before[5],
            )
        )
    return mounts


def mounts_at(paths: Iterable[str]) -> list[Mount]:
    """The mounts lying on any of these directories."""
    wanted = set(paths)
    return [mount for mount in mountinfo() if mount.path in wanted]


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escaped, plain)
    return field


def bind(tree: Tree, source: Names, target: Names, flags: int, *, recursive: bool = False) -> None:
    """Bind the directory `source` onto the directory `target` with flags (MS_RDONLY | …); `recursive`: together with what is
    mounted below `source`, whose flags stay.

    Both exist; neither path may lead through a link. The bind gets its flags before it is attached (Linux 5.12), because
    the node service works in a container: the host has a propagated copy of the mount, which takes the flags the mount
    has at that moment and would never learn of a later remount. Raises OSError.
    """
    with tree.open(source) as from_directory, tree.open(target) as to_directory:
        how = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
        clone = int(_call("open_tree", _SYS_OPEN_TREE, from_directory, b"", how))
        try:
            # struct mount_attr: set, clear, propagation, userns_fd. The four flags have the values of MS_RDONLY and so on.
            attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
            _call("mount_setattr", _SYS_MOUNT_SETATTR, clone, b"", _AT_EMPTY_PATH, attributes, len(attributes))
            _call("move_mount", _SYS_MOVE_MOUNT, clone, b"", to_directory, b"", _MOVE_MOUNT_BOTH_EMPTY_PATH)
        finally:
            os.close(clone)


def _call(name: str, number: int, *arguments: int | bytes) -> int:
    """A system call that libc may not know yet. Raises OSError with its name."""
    # Integers as long: a variadic call takes them from whole registers.
    passed = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} ({name})")
    return result


def detach(tree: Tree, target: Names) -> int:
    """Take away every mount lying on the directory: `umount2(MNT_DETACH | UMOUNT_NOFOLLOW)` until mountinfo is clean.

    Returns how many were taken. A missing directory or none mounted is fine. Raises OSError if the kernel refuses or
    mounts keep appearing.
    """
    path = tree.mount_path(target)
    taken = 0
    while any(mount.path == path for mount in mountinfo()):
        if taken == MOST_STACKED:
            raise OSError(f"mounts keep appearing on {path}: {taken} were taken away")
        try:
            with tree.open(target[:-1]) as parent:
                # Only the last name is resolved here, and UMOUNT_NOFOLLOW keeps it from being a link.
                name = os.fsencode(f"/proc/self/fd/{parent}/{target[-1]}")
                result = _libc.umount2(name, MNT_DETACH | UMOUNT_NOFOLLOW)
                number = ctypes.get_errno()
        except FileNotFoundError:
            break
        # EINVAL: it vanished between the two looks (its propagation came first).
        if result != 0 and number not in (22, 2):
            raise OSError(number, f"{os.strerror(number)}: cannot take away the mount on {path}")
        taken += 1
    return taken


class FuseConnections:
    """The kernel's control file system of FUSE, mounted nowhere: reached through the descriptor of a detached mount.

    A connection's files are opened *before* its mount is taken away: minors are reused, an open file is not. Reached at
    the first use: until some FUSE file system was mounted the module may not be loaded.
    """

    def __init__(self) -> None:
        self._root: int | None = None

    def hold(self, device: str) -> "FuseConnection | None":
        """The connection of the FUSE superblock `0:minor`; None if it is gone already or cannot be reached."""
        minor = device.partition(":")[2]
        try:
            if self._root is None:
                self._root = _open_fusectl()
            waiting = os.open(f"{minor}/waiting", os.O_PATH | os.O_CLOEXEC, dir_fd=self._root)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("FUSE connection %s cannot be watched, nor aborted if it hangs: %s", minor, error)
            return None
        try:
            abort = os.open(f"{minor}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._root)
        except FileNotFoundError:
            os.close(waiting)
            return None
        return FuseConnection(waiting, abort)

    def close(self) -> None:
        if self._root is not None:
            os.close(self._root)
            self._root = None


class FuseConnection:
    """One FUSE connection, held open so that it cannot be mistaken for a later one with the same number."""

    def __init__(self, waiting: int, abort: int) -> None:
        self._waiting, self._abort = waiting, abort

    @property
    def alive(self) -> bool:
        # The kernel answers with nothing once the connection is gone (fs/fuse/control.c). It answers once per opening,
        # and opening through our descriptor arrives at the same file whatever has its name now.
        descriptor = os.open(f"/proc/self/fd/{self._waiting}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 32) != b""
        finally:
            os.close(descriptor)

    def abort(self) -> None:
        """End every request with ECONNABORTED and the connection for good. Does nothing if it is gone."""
        os.write(self._abort, b"1")

    def close(self) -> None:
        os.close(self._waiting)
        os.close(self._abort)


def _open_fusectl() -> int:
    """A descriptor of fusectl's root by the mount API of Linux 5.2 (fsopen(2), fsmount(2)). Raises OSError."""
    context = _call("fsopen of fusectl", _SYS_FSOPEN, b"fusectl", _FSOPEN_CLOEXEC)
    try:
        arguments = (ctypes.c_long(context), ctypes.c_long(_FSCONFIG_CMD_CREATE), None, None, ctypes.c_long(0))
        if _libc.syscall(ctypes.c_long(_SYS_FSCONFIG), *arguments) < 0:
            raise OSError(ctypes.get_errno(), "fsconfig of fusectl failed")
        return _call("fsmount of fusectl", _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)
