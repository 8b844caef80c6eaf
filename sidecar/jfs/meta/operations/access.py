"""Who calls, and what the caller may do: permission bits, ACLs, sticky directories (format §3.10, §5.2). Pure but for
`Caller.groups`."""

import errno
import time
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.format.constants import DIRECTORY
from jfs.meta.model.acl import Rule
from jfs.meta.model.attr import Attr
from jfs.survival.journal import Request

READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1

_GROUPS_SECONDS = 1.0
_GROUPS_LIMIT = 1024
_groups: dict[
    tuple[int, int, int], tuple[float, tuple[int, ...]]
] = {}  # by process and who it is: it may become another


class Caller(NamedTuple):
    """The process behind a request. *pid* 0 is a process that this process' namespace does not show. What it asks for is to be
    *checked* here even where the kernel checks permissions, when the kernel does not know what it asks for (`.control`).
    *request* is the kernel's request where it may be repeated and must not be done twice."""

    uid: int
    gid: int
    pid: int
    umask: int = 0
    checked: bool = False
    request: Request | None = None

    def groups(self) -> tuple[int, ...]:
        """All groups of the caller, read from /proc and kept for a second; only its own gid when that cannot be read."""
        if self.pid <= 0:
            return (self.gid,)
        now = time.monotonic()
        who = self.pid, self.uid, self.gid
        known = _groups.get(who)
        if known is None or known[0] < now:
            if len(_groups) >= _GROUPS_LIMIT:
                _groups.clear()
            known = _groups[who] = (now + _GROUPS_SECONDS, _read_groups(self.pid))
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


def granted(caller: Caller, attr: Attr, rule: Rule | None = None) -> int:
    """The permission bits (rwx) that *caller* has, by the access ACL *rule* where the inode has one; root has read and write, and
    execute where anyone or a directory has it."""
    mode = attr.mode
    if caller.uid == 0:
        return 7 if mode & 0o111 or attr.kind == DIRECTORY else 6
    if caller.uid == attr.uid:
        return mode >> 6 & 7
    if rule is not None and not rule.is_minimal:
        return _granted_by_rule(caller, attr, rule)
    if attr.gid == caller.gid or attr.gid in caller.groups():
        return mode >> 3 & 7
    return mode & 7


def _granted_by_rule(caller: Caller, attr: Attr, rule: Rule) -> int:
    """What others than the owner have. Of several groups each bit counts that any of them has; a request for bits that no single
    group has together is the one case in which Linux says no and this says yes, so `check_access` asks by group."""
    for uid, permissions in rule.users:
        if uid == caller.uid:
            return permissions & rule.mask
    found = _group_permissions(caller, attr, rule)
    if not found:
        return rule.other & 7
    together = 0
    for permissions in found:
        together |= permissions
    return together


def _group_permissions(caller: Caller, attr: Attr, rule: Rule) -> list[int]:
    """What each entry of a group of *caller* grants."""
    groups = {caller.gid, *caller.groups()}
    found = [rule.group & rule.mask & 7] if attr.gid in groups else []
    return found + [permissions & rule.mask & 7 for gid, permissions in rule.groups if gid in groups]


def check_access(caller: Caller, attr: Attr, mask: int, rule: Rule | None = None) -> None:
    """FsError(EACCES) unless *caller* has all bits of *mask* (4 read, 2 write, 1 execute), by the access ACL *rule* where the inode
    has one. Root passes always (format §5.2)."""
    if not caller.uid:
        return
    if mask & ~granted(caller, attr, rule):
        raise FsError(errno.EACCES)
    if rule is None or rule.is_minimal or caller.uid == attr.uid or any(uid == caller.uid for uid, _ in rule.users):
        return
    found = _group_permissions(caller, attr, rule)
    if found and not any(mask & ~permissions == 0 for permissions in found):
        raise FsError(errno.EACCES)


def check_sticky(caller: Caller, directory: Attr, node: Attr) -> None:
    """FsError(EACCES), as the real client answers, when a sticky *directory* protects *node* from *caller* (format §5.2)."""
    if caller.uid and directory.kind_mode & 0o1000 and caller.uid not in (directory.uid, node.uid):
        raise FsError(errno.EACCES)
