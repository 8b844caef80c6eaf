"""Volumes in pods, as the node services say: what `status.attachments` is made of.

Holds the newest JuiceFSNode of each node, and when it last changed by our own clock: one that is not renewed is of a node, or a
node service, that is gone. Until a listing was seen nothing is known, and no status is touched: after a start the watch tells
of one node after the other. Entries are believed as far as their form goes, and decide nothing. Used by the event loop's thread alone.
"""

from collections.abc import Callable, Iterable

from jfs_api.attachments import FORGET_SECONDS, Attachment

from jfs_operator.api import Object, metadata


class Attachments:
    """`clock` in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._nodes: dict[str, tuple[Attachment, ...]] = {}
        self._objects: dict[str, tuple[Object, float]] = {}
        self._listed = False

    def of(self, persistent_volume: str) -> tuple[tuple[str, Attachment], ...] | None:
        """(node, entry) of each pod that has the volume; None while nothing is known."""
        if not self._listed:
            return None
        return tuple(
            (node, entry)
            for node, entries in self._nodes.items()
            for entry in entries
            if entry.volume == persistent_volume
        )

    def seen(self, body: Object, *, deleted: bool = False) -> set[str]:
        """An event about a JuiceFSNode; the PersistentVolumes for which something changed."""
        name = str(metadata(body)["name"])
        former = frozenset(self._nodes.get(name, ()))
        if deleted:
            self._nodes.pop(name, None)
            self._objects.pop(name, None)
            return {entry.volume for entry in former}
        known = self._objects.get(name)
        if known is None or metadata(known[0]).get("resourceVersion") != metadata(body).get("resourceVersion"):
            self._objects[name] = (body, self._clock())
        raw = body.get("attachments")
        entries = [entry for each in raw if (entry := Attachment.read(each))] if isinstance(raw, list) else []
        self._nodes[name] = tuple(entries)
        return {entry.volume for entry in former ^ frozenset(entries)}

    def listed(self, bodies: Iterable[Object]) -> set[str]:
        """All there are, by a listing; the PersistentVolumes for which something changed."""
        bodies = list(bodies)
        changed: set[str] = set()
        for name in self._nodes.keys() - {str(metadata(body)["name"]) for body in bodies}:
            changed |= self.seen({"metadata": {"name": name}}, deleted=True)
        for body in bodies:
            changed |= self.seen(body)
        if not self._listed:
            self._listed = True
            changed |= {entry.volume for entries in self._nodes.values() for entry in entries}
        return changed

    def forgotten(self) -> list[Object]:
        """The objects that nobody renews."""
        limit = self._clock() - FORGET_SECONDS
        return [body for body, changed in self._objects.values() if changed < limit]
