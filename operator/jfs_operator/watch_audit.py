"""Notices a watch that is silently dead: objects that a listing shows and no watch event has told of for a whole interval.

A stream that ended is opened again by kopf; this is for one that stays open and carries nothing. At each audit the listing is
compared with the versions that events brought: a difference is a suspicion, and one that the next audit finds again, without
any event of that object in between, is a dead watch. Used by the event loop's thread alone.
"""

from collections.abc import Iterable

from jfs_operator.api import Object, metadata, uid_of


class WatchAudit:
    """One kind of object."""

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}
        self._suspects: set[str] = set()

    def seen(self, body: Object, *, deleted: bool) -> None:
        """An event came."""
        uid = uid_of(body)
        self._suspects.discard(uid)
        if deleted:
            self._versions.pop(uid, None)
        else:
            self._versions[uid] = metadata(body).get("resourceVersion", "")

    def audit(self, listed: Iterable[Object]) -> bool:
        """Whether the watch is alive as far as this listing and the former one can tell."""
        current = {uid_of(body): metadata(body).get("resourceVersion", "") for body in listed}
        differing = {
            uid for uid in current.keys() | self._versions.keys() if current.get(uid) != self._versions.get(uid)
        }
        dead = bool(differing & self._suspects)
        self._suspects = differing
        return not dead
