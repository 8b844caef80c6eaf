"""Attributes and entries that this mount may still answer from (format §5.5), younger than the mount's time-outs.

Invariant: an answer that was read before an own commit never replaces what that commit left here. Each read takes a `tick` when
it starts; each own change is stamped with a later one; `learn_*` with an older tick is ignored. Removed things stay as expired
tombstones for their stamp. One event loop; no method suspends.
"""

import time
from typing import Final, NamedTuple

from jfs.format.constants import DIRECTORY
from jfs.meta.model.attr import Attr

LIMIT: Final = 20_000
MISSING: Final = 0  # inode of a negative entry


class _Node(NamedTuple):
    attr: Attr | None
    expires: float
    stamp: int


class _Name(NamedTuple):
    ino: int
    kind: int
    expires: float
    stamp: int


class NodeCache:
    """See the module. *limit* bounds attributes and entries each; the oldest go first."""

    def __init__(self, *, attr: float, entry: float, dir_entry: float, negative: float, limit: int = LIMIT) -> None:
        self._attr_seconds = attr
        self._entry_seconds = entry
        self._dir_seconds = dir_entry
        self._negative_seconds = negative
        self._limit = limit
        self._nodes: dict[int, _Node] = {}
        self._names: dict[tuple[int, bytes], _Name] = {}
        self._tick = 0

    def tick(self) -> int:
        """The time stamp of a read that begins now."""
        return self._tick

    def attr(self, ino: int) -> Attr | None:
        """Valid attributes of *ino*."""
        node = self._nodes.get(ino)
        return node.attr if node is not None and node.expires > time.monotonic() else None

    def entry(self, parent: int, name: bytes) -> int | None:
        """Inode of a valid entry, MISSING when it is known not to be there, None when nothing is known."""
        found = self._names.get((parent, name))
        return found.ino if found is not None and found.expires > time.monotonic() else None

    def hint(self, parent: int, name: bytes) -> int:
        """The inode that an entry named when last seen, however long ago; 0 when never."""
        found = self._names.get((parent, name))
        return found.ino if found is not None else 0

    def learn_attr(self, ino: int, attr: Attr, started: int) -> None:
        """Attributes from a read that began at tick *started*."""
        known = self._nodes.pop(ino, None)
        if known is not None and known.stamp > started:
            self._nodes[ino] = known
            return
        self._put_node(ino, _Node(attr, time.monotonic() + self._attr_seconds, 0))

    def learn_entry(self, parent: int, name: bytes, ino: int, kind: int, started: int) -> None:
        """An entry, or with MISSING its absence, from a read that began at tick *started*."""
        key = parent, name
        known = self._names.pop(key, None)
        if known is not None and known.stamp > started:
            self._names[key] = known
            return
        self._put_name(key, ino, kind, 0)

    def set_attr(self, ino: int, attr: Attr) -> None:
        """Attributes after an own commit."""
        self._tick += 1
        self._nodes.pop(ino, None)
        self._put_node(ino, _Node(attr, time.monotonic() + self._attr_seconds, self._tick))

    def set_entry(self, parent: int, name: bytes, ino: int, kind: int) -> None:
        """An entry after an own commit."""
        self._tick += 1
        self._names.pop((parent, name), None)
        self._put_name((parent, name), ino, kind, self._tick)

    def drop_attr(self, ino: int) -> None:
        """An own commit removed the inode, or it must be read again."""
        self._tick += 1
        self._nodes.pop(ino, None)
        self._put_node(ino, _Node(None, 0.0, self._tick))

    def drop_entry(self, parent: int, name: bytes) -> None:
        """An own commit removed the entry."""
        self._tick += 1
        self._names.pop((parent, name), None)
        self._put_name((parent, name), MISSING, 0, self._tick)

    def _put_node(self, ino: int, node: _Node) -> None:
        if len(self._nodes) >= self._limit:
            for oldest in list(self._nodes)[: self._limit // 4]:
                del self._nodes[oldest]
        self._nodes[ino] = node

    def _put_name(self, key: tuple[int, bytes], ino: int, kind: int, stamp: int) -> None:
        if len(self._names) >= self._limit:
            for oldest in list(self._names)[: self._limit // 4]:
                del self._names[oldest]
        seconds = self._dir_seconds if kind == DIRECTORY else self._entry_seconds
        if ino == MISSING:
            seconds = self._negative_seconds
        self._names[key] = _Name(ino, kind, time.monotonic() + seconds if seconds else 0.0, stamp)

    def clear(self) -> None:
        """Forget everything, keeping the tick."""
        self._nodes.clear()
        self._names.clear()
