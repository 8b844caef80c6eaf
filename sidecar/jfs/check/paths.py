"""Names of places for people: paths of inodes and entries, found by a second pass over the entries when there is something to name."""

from collections.abc import Iterable

from jfs.check.damage import Place
from jfs.check.facts import Facts
from jfs.format.constants import ROOT, TRASH, TRASH_NAME
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import EdgeKey
from jfs.meta.store.base import Store


class Paths:
    """One path of each inode that was asked for. What has none is called by its number."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._names: dict[int, tuple[int, bytes]] = {}  # parent and name

    async def learn(self, store: Store, inodes: Iterable[int]) -> None:
        """Find the names of *inodes* and of the directories above them."""
        wanted: set[int] = set()
        for ino in inodes:
            at: int | None = ino
            while at is not None and at not in (ROOT, TRASH) and at not in wanted:
                wanted.add(at)
                at = self._facts.first_parent.get(at)
        if not wanted:
            return
        async for key, entry in store.scan(EdgeKey):
            if isinstance(entry, Entry) and entry.ino in wanted:
                self._names.setdefault(entry.ino, (key.parent, key.name))

    def of(self, place: Place) -> str:
        """The path of a place."""
        if place is None:
            return "the volume"
        if isinstance(place, tuple):
            parent, name = place
            above = self.of(parent)
            return f"{above.rstrip('/')}/{_shown(name)}"
        parts: list[bytes] = []
        seen: set[int] = set()
        at = place
        while at not in (ROOT, TRASH):
            named = self._names.get(at)
            if named is None or at in seen:
                below = "/".join(map(_shown, reversed(parts)))
                return f"inode {at}" + (f" /{below}" if below else "")
            seen.add(at)
            at, name = named
            parts.append(name)
        if at == TRASH:
            parts.append(TRASH_NAME)
        return "/" + "/".join(map(_shown, reversed(parts)))


def inodes_of(places: Iterable[Place]) -> set[int]:
    """The inodes whose names are needed to name *places*."""
    return {place[0] if isinstance(place, tuple) else place for place in places if place is not None}


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
