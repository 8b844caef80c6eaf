"""Open files and what they hold: open, release, slice commits, truncation (format §5.3, §6.1)."""

import errno
import os

from jfs.errors import FsError
from jfs.format.constants import DIRECTORY, FILE
from jfs.format.slices import Slice, unpack
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import ChunkKey, NodeKey
from jfs.meta.operations import content, removal
from jfs.meta.operations.access import Caller
from jfs.meta.operations.content import Written
from jfs.meta.operations.removal import Dropped
from jfs.meta.store.base import Tx
from jfs.meta.volume.entries import Entries


class Contents(Entries):
    """See the module."""

    async def open(self, caller: Caller, ino: int, flags: int) -> Attr:
        """Open a file: fresh attributes (close-to-open), and its first chunk's list in the same round trip.
        FsError: ENOENT, EISDIR, EACCES, EPERM, EROFS."""
        started, version = self._cache.tick(), self._opened.version(ino)
        attr: Attr | None
        attr, raw = await self.store.get(NodeKey(ino), ChunkKey(ino, 0))
        if attr is None:
            raise FsError(errno.ENOENT)
        if attr.kind == DIRECTORY:
            raise FsError(errno.EISDIR)
        self._check_open(caller, attr, flags, await self._acl(attr.access_acl) if attr.access_acl else None)
        self._learn(ino, attr, started)
        file = self._opened.open(ino, attr)
        # -1: nobody had it open when the read began. A handle opened meanwhile may already have written, so its list is not kept.
        if attr.kind == FILE and (file.count == 1 if version < 0 else file.version == version):
            self._opened.keep(ino, 0, unpack(raw or b""), file.version)
        if flags & os.O_ACCMODE != os.O_WRONLY:
            await self._read_at(ino, attr)
        return attr

    async def release(self, ino: int) -> None:
        """Close a handle; the last one of a file without names removes it."""
        if not self._opened.release(ino) or ino not in self._sustained:
            return
        self._sustained.discard(ino)
        now, rules = self._clock(), self._rules()

        async def operation(tx: Tx) -> Dropped | None:
            return await removal.release_sustained(tx, self.sid, ino, now, rules)

        dropped = await self.store.run(operation, near=(ino,))
        if rules.quotas is not None:
            rules.quotas.settle()
        if dropped is not None:
            self._dropped(dropped)

    async def new_slice_id(self) -> int:
        """An id for a slice about to be uploaded."""
        return await self._slice_ids.take()

    async def commit_slice(self, ino: int, indx: int, pos: int, slice: Slice, mtime_ns: int) -> Attr:
        """Make an uploaded slice visible at *pos* of chunk *indx*. FsError: ENOENT (the file is gone: delete the objects), ENOSPC,
        EPERM, EROFS. Only one commit of a chunk may be under way where their order matters."""
        self._check_writable()
        record = slice if slice.pos == pos else slice._replace(pos=pos)
        now, rules = self._clock(), self._rules()

        async def operation(tx: Tx) -> Written:
            return await content.commit_slice(tx, rules, ino, indx, record, mtime_ns, now)

        written = await self.store.run(operation, near=(ino,))
        if rules.quotas is not None:
            rules.quotas.settle()
        attr = self._written(ino, written, indx)
        compaction = self._compaction
        if compaction is not None and compaction.committed(ino, indx, written.before.length):
            await compaction.make_room(ino, indx)
        return attr

    async def truncate(self, caller: Caller, ino: int, length: int, *, opened: bool) -> Attr:
        """Set a file's length; *opened* by a writable handle. FsError: ENOENT, EPERM, EACCES, EINVAL, EFBIG, ENOSPC, EROFS."""
        self._check_writable()
        present = await self.getattr(ino)
        chunks = None
        if content.needs_chunks(present.length, length):
            chunks = await self.store.chunk_indexes(ino)
        now, rules = self._clock(), self._rules()

        async def operation(tx: Tx) -> Written:
            return await content.truncate(tx, caller, rules, ino, length, now, opened=opened, chunks=chunks)

        written = await self.store.run(operation, near=(ino,))
        if rules.quotas is not None:
            rules.quotas.settle()
        attr = self._written(ino, written, None)
        if written.before is not written.attr:
            self._opened.forget_chunks(ino)
        return attr

    def _written(self, ino: int, written: Written, indx: int | None) -> Attr:
        self._usage.add(written.space, 0)
        self._cache.set_attr(ino, written.attr)
        if self._opened.changed(ino, written.before, written.attr, indx) and self.on_inode_changed is not None:
            self.on_inode_changed(ino)
        return written.attr
