"""Quotas on Redis (format §4.1.2): for each kind of owner a hash of limits and two of usage. Pure, part of `layout`.

The usage of a directory is added to while it has a quota: another client may have removed one that a mount still knows. Users and
groups get a record without limits with the first of their inodes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from jfs.meta.engines.redis.connection import Command
from jfs.meta.model.quota import DIRECTORY, Quota, QuotaChange, QuotaKey, pack_limits, unpack_limits

# Pseudo-command (name, a hash, field, [hash, delta]…): HINCRBY of the field in each hash, only where the first hash has it.
# Transactions replace it (see `transaction` and `script`).
ADD_TO_EXISTING: Final = b"?HINCRBY"
_WITHOUT_LIMITS: Final = pack_limits(Quota())


def _decode(key: QuotaKey, replies: Sequence[Any]) -> Quota | None:
    limits, space, inodes = replies
    return None if limits is None else Quota(*unpack_limits(limits), int(space or 0), int(inodes or 0))


DECODING: Final[dict[str, Callable[[Any, Sequence[Any]], Any]]] = {"quota": _decode}


class QuotaLayout:
    """The hashes of quotas in a volume whose keys begin with *prefix*, by kind of owner, and the commands on them."""

    def __init__(self, prefix: bytes) -> None:
        hashes = tuple(
            (prefix + owner + b"Quota", prefix + owner + b"QuotaUsedSpace", prefix + owner + b"QuotaUsedInodes")
            for owner in (b"dir", b"user", b"group")
        )
        self.hashes: Final = hashes
        self.reading: dict[str, Callable[[Any], tuple[Command, ...]]] = {
            "quota": lambda key: tuple((b"HGET", name, key.id) for name in hashes[key.what]),
        }
        self.putting: dict[str, Callable[[Any, Any], list[Command]]] = {"quota": self._put}
        self.deleting: dict[str, Callable[[Any], list[Command]]] = {
            "quota": lambda key: [(b"HDEL", name, key.id) for name in hashes[key.what]],
        }

    def _put(self, key: QuotaKey, quota: Quota) -> list[Command]:
        limits, space, inodes = self.hashes[key.what]
        return [
            (b"HSET", limits, key.id, pack_limits(quota)),
            (b"HSET", space, key.id, quota.used_space),
            (b"HSET", inodes, key.id, quota.used_inodes),
        ]

    def adding(self, key: QuotaKey, change: QuotaChange) -> list[Command]:
        """The commands that add to a usage."""
        limits, space, inodes = self.hashes[key.what]
        if (
            key.what == DIRECTORY
        ):  # the real client takes usage without limits, left of a quota that was removed, for a quota
            return [(ADD_TO_EXISTING, limits, key.id, space, change.space, inodes, change.inodes)]
        return [
            (b"HSETNX", limits, key.id, _WITHOUT_LIMITS),
            (b"HINCRBY", space, key.id, change.space),
            (b"HINCRBY", inodes, key.id, change.inodes),
        ]
