"""Ranges of files without moving data: fallocate, copies by reference, and where data and holes are (format §5.3)."""

import errno
from typing import Final

from jfs.errors import FsError
from jfs.format.constants import CHUNK
from jfs.format.slices import view
from jfs.meta.model.attr import Attr
from jfs.meta.operations import ranges
from jfs.meta.operations.content import Written
from jfs.meta.operations.ranges import Copied
from jfs.meta.store.base import Tx
from jfs.meta.volume.contents import Contents

_FEW: Final = 8  # chunks that are asked for one by one


class Ranges(Contents):
    """See the module. What this mount has written must be committed before."""

    async def fallocate(self, ino: int, mode: int, offset: int, size: int) -> Attr:
        """fallocate(2) with KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE. FsError: EINVAL, ENOTSUP, EFBIG, ENOENT, EPERM, EPIPE, ENOSPC,
        EROFS."""
        ranges.check_fallocate(mode, offset, size)
        self._check_writable()
        if self._held:
            await self._end_youth(ino)
        chunks = await self.store.chunk_indexes(ino) if ranges.needs_chunks(mode, offset, size) else None
        now, rules = self._clock(), self._rules()

        async def operation(tx: Tx) -> Written:
            return await ranges.fallocate(tx, rules, ino, mode, offset, size, now, chunks=chunks)

        written = await self.store.run(operation, near=(ino,))
        if rules.quotas is not None:
            rules.quotas.settle()
        self._opened.forget_chunks(ino)
        return self._written(ino, written, None)

    async def copy_range(
        self, source: int, offset: int, target: int, position: int, size: int
    ) -> tuple[int, Attr | None]:
        """Bytes copied (fewer than *size* at the source's end or beyond 2 GiB) and the target's attributes, None when nothing was
        copied. FsError: ENOENT, EINVAL, EPERM, EFBIG, ENOSPC, EROFS."""
        self._check_writable()
        if self._held:
            await self._end_youth(target)
        now, rules = self._clock(), self._rules()

        async def operation(tx: Tx) -> Copied:
            return await ranges.copy_range(tx, rules, source, offset, target, position, size, now)

        copied = await self.store.run(operation, near=(source, target))
        if rules.quotas is not None:
            rules.quotas.settle()
        if copied.written is None:
            return 0, None
        self._opened.forget_chunks(target)
        return copied.size, self._written(target, copied.written, None)

    async def seek_data(self, ino: int, offset: int, length: int) -> int:
        """Where data begins at or behind *offset* in a file of *length* bytes; FsError(ENXIO) when there is none."""
        first, last = offset // CHUNK, (length - 1) // CHUNK
        if offset < length:
            indexes = range(first, last + 1)
            present = await self.store.chunk_indexes(ino, length) if len(indexes) > _FEW else indexes
            for indx in present:
                if indx not in indexes:
                    continue
                base = indx * CHUNK
                for segment in view(await self.read_slices(ino, indx)):
                    if segment.id and base + segment.pos + segment.len > offset:
                        found = max(base + segment.pos, offset)
                        if found < length:
                            return found
        raise FsError(errno.ENXIO)

    async def seek_hole(self, ino: int, offset: int, length: int) -> int:
        """Where a hole begins at or behind *offset*; the end of the file is one. FsError(ENXIO) behind the end."""
        if offset >= length:
            raise FsError(errno.ENXIO)
        at = offset
        while at < length:
            indx, pos = divmod(at, CHUNK)
            for segment in view(await self.read_slices(ino, indx)):
                if segment.pos <= pos < segment.pos + segment.len:
                    if not segment.id:
                        break
                    pos = segment.pos + segment.len
            if pos < CHUNK:
                return min(indx * CHUNK + pos, length)
            at = (indx + 1) * CHUNK
        return length
