"""Whom a request counts as when the mount maps users: `--root-squash` and `--all-squash` (as the real client does).

The kernel's own permission check (default_permissions) knows only the real user, so what a mapped caller asks for is checked
here as well; with `--all-squash` the mount has no default_permissions at all. The supplementary groups stay those of the
process. Hosts make callers by what `callers` returns; without these options that is `Caller` itself. No state.
"""

from collections.abc import Callable
from typing import NamedTuple

from jfs.meta.volume import Caller


class Owner(NamedTuple):
    """The user and group that others are mapped to."""

    uid: int
    gid: int


def callers(root: Owner | None, everyone: Owner | None) -> Callable[[int, int, int], Caller]:
    """What makes a caller of uid, gid and pid: *everyone* in place of all users, else *root* in place of uid 0."""
    if everyone is not None:
        uid, gid = everyone

        def squashed(_uid: int, _gid: int, pid: int) -> Caller:
            return Caller(uid, gid, pid, checked=True)

        return squashed
    if root is not None:
        mapped = root

        def without_root(uid: int, gid: int, pid: int) -> Caller:
            return Caller(uid, gid, pid) if uid else Caller(mapped.uid, mapped.gid, pid, checked=True)

        return without_root
    return Caller
