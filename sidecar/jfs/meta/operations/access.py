"""Who calls, and what the caller may do: permission bits, sticky directories (format §5.2). Pure but for `Caller.groups`."""

import errno
import time
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.format.constants import DIRECTORY
from jfs.meta.model.attr import Attr

READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1

_GROUPS_SECONDS = 1.0
_GROUPS_LIMIT = 1024
_groups: dict[int, tuple[float, tuple[int, ...]]] = {}


class Caller(NamedTuple):
    """The process behind a request. *pid* 0 is a process that this process' namespace does not show."""

    uid: int
    gid: int
    pid: int
    umask: int = 0

    def groups(self) -> tuple[int, ...]:
        """All groups of the caller, read from /proc and kept for a second; only its own gid when that cannot be read."""
        if self.pid <= 0:
            return (self.gid,)
        now = time.monotonic()
        known = _groups.get(self.pid)
        if known is None or known[0] < now:
            if len(_groups) >= _GROUPS_LIMIT:
                _groups.clear()
            known = _groups[self.pid] = (now + _GROUPS_SECONDS, _read_groups(self.pid))
        return (self.gid, *known[1])


def _read_groups(pid: int) -> tuple[int, ...]:
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    return tuple(int(group) for group in line[7:].split())
    except OSError:
        pass  # the process is gone or hidden: its primary group is all we know
    return ()


SUPERUSER: Final = Caller(0, 0, 0)


def granted(caller: Caller, attr: Attr) -> int:
    """The permission bits (rwx) that *caller* has; root has read and write, and execute where anyone or a directory has it."""
    mode = attr.mode
    if caller.uid == 0:
        return 7 if mode & 0o111 or attr.kind == DIRECTORY else 6
    if caller.uid == attr.uid:
        return mode >> 6 & 7
    if attr.gid == caller.gid or attr.gid in caller.groups():
        return mode >> 3 & 7
    return mode & 7


def check_access(caller: Caller, attr: Attr, mask: int) -> None:
    """FsError(EACCES) unless *caller* has all bits of *mask* (4 read, 2 write, 1 execute). Root passes always (format §5.2)."""
    if caller.uid and mask & ~granted(caller, attr):
        raise FsError(errno.EACCES)


def check_sticky(caller: Caller, directory: Attr, node: Attr) -> None:
    """FsError(EACCES), as the real client answers, when a sticky *directory* protects *node* from *caller* (format §5.2)."""
    if caller.uid and directory.kind_mode & 0o1000 and caller.uid not in (directory.uid, node.uid):
        raise FsError(errno.EACCES)
