"""Open files and what they hold: open, release, slice commits, truncation (format §5.3, §6.1)."""

import errno
import os
from collections.abc import Sequence
from typing import Final

from jfs.errors import FsError
from jfs.format.constants import DIRECTORY, FILE
from jfs.format.slices import Slice, unpack
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import ChunkKey, NodeKey
from jfs.meta.operations import content
from jfs.meta.operations.access import Caller
from jfs.meta.operations.content import Written
from jfs.meta.store.base import Tx
from jfs.meta.volume.entries import Entries

_REOPENED_AT_ONCE: Final = 500  # inodes read in one round trip


class Contents(Entries):
    """See the module."""

    async def open(self, caller: Caller, ino: int, flags: int) -> Attr:
        """Open a file: fresh attributes (close-to-open), unless `open_cache` trusts those seen last, and its first chunk's list in the
        same round trip.
        FsError: ENOENT, EISDIR, EACCES, EPERM, EROFS."""
        if self._held:
            await self.settle_attrs(ino)
        await self._leaving.settled(ino)
        self._leaving.begin_opening(ino)
        try:
            return await self._open(caller, ino, flags)
        finally:
            self._leaving.end_opening(ino)
            if ino in self._sustained and ino not in self.lingering:
                self._let_go(ino)

    async def _open(self, caller: Caller, ino: int, flags: int) -> Attr:
        trusted = self._opened.trusted(ino)
        if trusted is not None:
            self._check_open(
                caller, trusted, flags, await self._acl(trusted.access_acl) if trusted.access_acl else None
            )
            self._opened.open(ino, trusted)
            return trusted
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

    async def reopen(self, inos: Sequence[int]) -> dict[int, Attr]:
        """Files that a predecessor in this session had open, once for each handle: attributes of those that still exist. What the
        session sustains and nobody has open any more is removed."""
        found: dict[int, Attr] = {}
        distinct = list(dict.fromkeys(inos))
        for begin in range(0, len(distinct), _REOPENED_AT_ONCE):
            some = distinct[begin : begin + _REOPENED_AT_ONCE]
            attrs = await self.store.get(*map(NodeKey, some))
            found.update((ino, attr) for ino, attr in zip(some, attrs, strict=True) if attr is not None)
        for ino in inos:
            if ino in found:
                self._opened.open(ino, found[ino])
        if self.sid:
            self._sustained = {ino async for ino in self.store.sustained(self.sid)}
            for ino in self._sustained - found.keys():
                await self._release_sustained(ino)
        return found

    async def release(self, ino: int) -> None:
        """Close a handle; the last one of a file without names removes it."""
        if not self._opened.release(ino):
            return
        if self._held:
            await self._end_youth(ino)
        if ino in self._sustained and ino not in self.lingering:
            await self._release_sustained(ino)

    async def new_slice_id(self) -> int:
        """An id for a slice about to be uploaded."""
        return await self._slice_ids.take()

    async def commit_slice(self, ino: int, indx: int, pos: int, slice: Slice, mtime_ns: int) -> Attr:
        """Make an uploaded slice visible at *pos* of chunk *indx*. FsError: ENOENT (the file is gone: delete the objects), ENOSPC,
        EPERM, EROFS. Only one commit of a chunk may be under way where their order matters."""
        self._check_writable()
        record = slice if slice.pos == pos else slice._replace(pos=pos)
        now, rules = self._clock(), self._rules()
        held = self._held.get(ino)
        taken = held.want if held is not None else None
        if held is not None:
            held.unknown += 1

        async def operation(tx: Tx) -> Written:
            nonlocal taken
            written = await content.commit_slice(tx, rules, ino, indx, record, mtime_ns, now)
            if held is not None:
                taken = held.want
                attr = held.onto(written.before, written.attr)
                tx.put(NodeKey(ino), attr)
                written = Written(written.before, attr, written.space)
            return written

        written = await self.store.run(operation, near=(ino,))
        if rules.quotas is not None:
            rules.quotas.settle()
        if held is not None and taken is not None:
            held.committed(written.attr, taken)
            self._held.changed(ino)
        attr = self._written(ino, written, indx)
        if held is not None and not held.is_clean:
            self._cache.set_attr(ino, held.want)
        compaction = self._compaction
        if compaction is not None and compaction.committed(ino, indx, written.before.length):
            await compaction.make_room(ino, indx)
        return attr

    async def truncate(self, caller: Caller, ino: int, length: int, *, opened: bool) -> Attr:
        """Set a file's length; *opened* by a writable handle. FsError: ENOENT, EPERM, EACCES, EINVAL, EFBIG, ENOSPC, EROFS."""
        self._check_writable()
        if self._held:
            await self._end_youth(ino)
        chunks: list[int] | None = None
        now, rules = self._clock(), self._rules()

        async def operation(tx: Tx) -> Written:
            return await content.truncate(tx, caller, rules, ino, length, now, opened=opened, chunks=chunks)

        try:
            written = await self.store.run(operation, near=(ino,))
        except content.ManyChunks:  # as rare as files of that size
            chunks = await self.store.chunk_indexes(ino)
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
