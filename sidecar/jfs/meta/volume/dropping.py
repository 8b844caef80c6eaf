"""What the loss of a name means for this mount: usage, caches, files that are still open, data to be deleted.

A file without names that is open here is sustained by the session until its last handle is closed, also when that happens while the
loss is being committed. One event loop.
"""

import asyncio
import logging
from functools import cached_property
from typing import Final

from jfs.errors import JfsError
from jfs.format.constants import DIRECTORY, SYMLINK
from jfs.meta.model.attr import Attr
from jfs.meta.operations import removal
from jfs.meta.operations import rules as common
from jfs.meta.operations.removal import Dropped
from jfs.meta.store.base import Tx
from jfs.meta.volume.attributes import Attributes
from jfs.meta.volume.leaving import Lingering

log = logging.getLogger(__name__)

_GONE: Final = 1000  # the last ones are remembered


class Dropping(Attributes):
    """See the module."""

    @cached_property
    def lingering(self) -> Lingering:
        """Files that renames have replaced and the kernel has not forgotten."""
        return Lingering(self._let_go)

    async def _dropped(self, dropped: Dropped, *, lingers: bool = False) -> int:
        """What an inode's loss of an entry means for this mount; the inode when it has no name left. A file that *lingers* stays until
        the kernel forgets it."""
        self._usage.add(dropped.space, dropped.inodes)
        if dropped.kind == DIRECTORY:
            self._stats_known.discard(dropped.ino)
        if dropped.attr is None:
            self._cache.drop_attr(dropped.ino)
        else:
            self._relinked(dropped.ino, dropped.attr)
        if dropped.sustained:
            self._sustained.add(dropped.ino)
            if lingers:
                self.lingering.add(dropped.ino)
            else:
                await self._release_sustained(
                    dropped.ino
                )  # its last handle may have been closed while this was being committed
            return dropped.ino
        if dropped.deleted is not None:
            self._deletion.submit(dropped.ino, dropped.deleted)
        return dropped.ino if dropped.attr is None else 0

    def _remember(self, ino: int, was: Attr, now: int, text: bytes = b"") -> None:
        """Keep what a removed inode without data was: processes may still have it open, be in it, or have found it by name."""
        self._gone[ino] = common.with_ctime(was._replace(nlink=0), now), text
        if len(self._gone) > _GONE:
            del self._gone[next(iter(self._gone))]

    def gone(self, ino: int) -> Attr | None:
        """What a directory was that this mount has removed, or what is no file and was replaced."""
        found = self._gone.get(ino)
        return None if found is None else found[0]

    def gone_text(self, ino: int) -> bytes | None:
        """The target of a symbolic link that was replaced."""
        found = self._gone.get(ino)
        return None if found is None or found[0].kind != SYMLINK else found[1]

    def _let_go(self, ino: int) -> None:
        if ino in self._sustained and not self._opened.is_open(ino):
            task = asyncio.create_task(self._let_go_now(ino), name="replaced file")
            self._letting_go.add(task)
            task.add_done_callback(self._letting_go.discard)

    async def _let_go_now(self, ino: int) -> None:
        try:
            await self._release_sustained(ino)
        except JfsError as error:
            log.warning("inode %d, which was replaced, goes with the session: %s", ino, error)

    async def _stop_lingering(self) -> None:
        self.lingering.clear()
        if self._letting_go:
            await asyncio.wait(self._letting_go)

    async def _release_sustained(self, ino: int) -> None:
        """Remove a file without names, unless somebody has it open or is about to: then the last one does."""
        with self._leaving.removal() as is_open:
            if is_open(ino):
                return
            self._sustained.discard(ino)
            now, rules = self._clock(), self._rules()

            async def operation(tx: Tx) -> Dropped | None:
                return await removal.release_sustained(tx, self.sid, ino, now, rules)

            dropped = await self.store.run(operation, near=(ino,))
        if rules.quotas is not None:
            rules.quotas.settle()
        if dropped is not None:
            await self._dropped(dropped)
