"""What the loss of a name means for this mount: usage, caches, files that are still open, data to be deleted.

A file without names that is open here is sustained by the session until its last handle is closed, also when that happens while the
loss is being committed. One event loop.
"""

from jfs.format.constants import DIRECTORY
from jfs.meta.operations import removal
from jfs.meta.operations.removal import Dropped
from jfs.meta.store.base import Tx
from jfs.meta.volume.attributes import Attributes


class Dropping(Attributes):
    """See the module."""

    async def _dropped(self, dropped: Dropped) -> int:
        """What an inode's loss of an entry means for this mount; the inode when it has no name left."""
        self._usage.add(dropped.space, dropped.inodes)
        if dropped.kind == DIRECTORY:
            self._stats_known.discard(dropped.ino)
        if dropped.attr is None:
            self._cache.drop_attr(dropped.ino)
        else:
            self._relinked(dropped.ino, dropped.attr)
        if dropped.sustained:
            self._sustained.add(dropped.ino)
            if not self._opened.is_open(dropped.ino):  # its last handle was closed while this was being committed
                await self._release_sustained(dropped.ino)
            return dropped.ino
        if dropped.deleted is not None:
            self._deletion.submit(dropped.ino, dropped.deleted)
        return dropped.ino if dropped.attr is None else 0

    async def _release_sustained(self, ino: int) -> None:
        self._sustained.discard(ino)
        now, rules = self._clock(), self._rules()

        async def operation(tx: Tx) -> Dropped | None:
            return await removal.release_sustained(tx, self.sid, ino, now, rules)

        dropped = await self.store.run(operation, near=(ino,))
        if rules.quotas is not None:
            rules.quotas.settle()
        if dropped is not None:
            await self._dropped(dropped)
