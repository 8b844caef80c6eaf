"""Pending data of one inode: which slice a write goes to, when slices end, and their commit (format §6.1).

A slice is *open* (takes more data; its complete blocks are uploaded meanwhile), then *frozen* (the rest is uploaded), then
committed or failed and gone.
Invariants:
- slices are committed strictly in the order of their creation within the whole file, each after all its blocks are in the
  storage, so that what other clients see is always a prefix of what was written, and the length never grows over data that
  are not there;
- a block handed to an upload is never written again: later data for its range go to a newer slice;
- objects of a slice that was not committed are deleted again, except when the outcome of the commit is unknown.
Concurrency: one event loop; `write` copies without suspending once it has room. One committer task per file runs while the
oldest slice is frozen. A failure is counted; each handle reports it once.
"""

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from jfs.chunk.slice_buffer import SliceBuffer
from jfs.errors import FsError, JfsError, ObjectError, StorageFull, StorageReadOnly, StoreAway
from jfs.format.constants import CHUNK
from jfs.format.slices import Slice
from jfs.survival.arena import Left

if TYPE_CHECKING:
    from jfs.chunk.writer import Writer

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_PENDING: Final = 1000  # slices of one file; then writes wait
PAUSE: Final = 1.0  # seconds before a database that is away is asked again
NEAR: Final = 4  # open slices further back than this are frozen when a write passes them


class PendingSlice:
    """A slice between its first byte and its commit."""

    __slots__ = (
        "buffer",
        "error",
        "frozen",
        "id",
        "indx",
        "last",
        "lock",
        "maybe_committed",
        "mtime_ns",
        "start",
        "started",
        "uploaded",
        "uploads",
    )

    def __init__(self, indx: int, start: int, buffer: SliceBuffer, now: float) -> None:
        self.indx = indx  # of the chunk
        self.start = start  # in the chunk
        self.buffer = buffer
        self.id = 0  # allotted before the first upload
        self.lock = asyncio.Lock()  # around allotting the id
        self.uploaded = 0  # blocks handed to an upload
        self.uploads: list[asyncio.Task[None]] = []
        self.frozen = False
        self.error = 0  # errno of a failed upload
        self.started = now
        self.last = now
        self.mtime_ns = 0
        self.maybe_committed = False  # a predecessor died while it asked for that

    @property
    def end(self) -> int:
        """In the chunk."""
        return self.start + self.buffer.length


class InodeWriter:
    """Pending slices of inode *ino*, shared by its handles."""

    def __init__(self, mount: "Writer", ino: int) -> None:
        self.mount = mount
        self.ino = ino
        self.tier = 0  # of storage, as the last open has seen it
        self.handles = 0
        self.pending: deque[PendingSlice] = deque()  # in creation order
        self.length = 0  # end of the furthest pending byte
        self.failures = 0
        self.last_errno = 0
        self.pause = asyncio.Lock()
        self._by_chunk: dict[int, list[PendingSlice]] = {}
        self._committed = 0  # slices that have left `pending`
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._committer: asyncio.Future[None] | None = None

    async def write(self, offset: int, data: bytes | bytearray | memoryview, request: int = 0) -> None:
        """Take *data* at *offset* of the file; suspends only for room, while the file is paused, or when what is not stored would
        not survive. *request* is the number of one that appends, 0 of others."""
        budget = self.mount.budget
        while True:
            if self.pause.locked():
                async with self.pause:
                    continue
            if not budget.has_room:
                if not self.mount.uploading:
                    self.mount.relieve()  # nothing is on its way out: memory comes back only from ending open slices
                await budget.wait_for_room()
                budget.pass_on()
                continue
            if len(self.pending) >= MAX_PENDING:
                self.freeze_all()
                await self._left(self._committed + len(self.pending) - MAX_PENDING + 1)
                continue
            break
        view = memoryview(data)
        now, mtime_ns = self.mount.now(), self.mount.clock()
        at = 0
        while at < len(view):
            indx, pos = divmod(offset + at, CHUNK)
            count = min(CHUNK - pos, len(view) - at)
            piece = self._write_chunk(indx, pos, view[at : at + count], now, mtime_ns)
            if piece.buffer.kept is not None:
                piece.buffer.kept.wrote(piece.buffer.length, mtime_ns, request, offset if request else 0)
            at += count
            self.length = max(self.length, offset + at)  # before the slice is ended: it may be committed at once
            self._written_to(piece)
        if self.mount.pool.overflowed:
            await self.mount.overflowed(self)

    def _write_chunk(self, indx: int, pos: int, data: memoryview, now: float, mtime_ns: int) -> PendingSlice:
        piece = self._writable(indx, pos, len(data))
        if piece is None:
            kept = self.mount.keep(self.ino, indx, pos, self.tier)
            piece = PendingSlice(indx, pos, SliceBuffer(self.mount.pool, kept), now)
            self.pending.append(piece)
            self._by_chunk.setdefault(indx, []).append(piece)
            self.mount.watch()
        self.mount.budget.add_dirty(piece.buffer.write(pos - piece.start, data))
        piece.last, piece.mtime_ns = now, mtime_ns
        return piece

    def _written_to(self, piece: PendingSlice) -> None:
        """End the slice with its chunk, or upload its blocks that are complete."""
        if piece.end == CHUNK:
            self.freeze(piece)
        else:
            full = piece.buffer.length // self.mount.blocks.block_size
            while piece.uploaded < full:
                self._start_upload(piece)

    def _writable(self, indx: int, pos: int, size: int) -> PendingSlice | None:
        """The slice that [pos, pos+size) can be added to; None when it needs a new one (format §6.1 rule 1)."""
        block_size = self.mount.blocks.block_size
        for age, piece in enumerate(reversed(self._by_chunk.get(indx, ()))):
            if not piece.frozen:
                if piece.uploaded * block_size <= pos - piece.start <= piece.buffer.length:
                    return piece
                if age >= NEAR:
                    self.freeze(piece)
            if pos < piece.end and piece.start < pos + size:
                return None  # it must stay above what is older
        return None

    def adopt(self, left: Left) -> None:
        """Go on with a slice that a predecessor left: upload what of it is not in the storage, and commit it in its turn. Nothing is
        added to it any more."""
        buffer = SliceBuffer(self.mount.pool, left.kept)
        buffer.adopt(left.length, left.blocks)
        piece = PendingSlice(left.indx, left.start, buffer, self.mount.now())
        piece.id, piece.mtime_ns, piece.maybe_committed = left.id, left.mtime_ns, left.maybe_committed
        piece.frozen, self.tier = True, left.tier
        self.pending.append(piece)
        self._by_chunk.setdefault(left.indx, []).append(piece)
        self.length = max(self.length, left.indx * CHUNK + piece.end)
        self.mount.budget.add_dirty(buffer.allocated)
        for indx in range(-(-left.length // self.mount.blocks.block_size)):
            piece.uploaded += 1
            if not buffer.missing(indx):
                self.mount.uploading += 1
                piece.uploads.append(self.mount.spawn(self._upload(piece, indx)))
        if self._committer is None:
            self._committer = self.mount.spawn(self._commit_frozen())

    @property
    def mtime_ns(self) -> int:
        """The time of the last pending write; 0 when nothing is pending."""
        return max((piece.mtime_ns for piece in self.pending), default=0)

    def freeze(self, piece: PendingSlice) -> None:
        """No more data for *piece*: upload what is left of it; commit it when its turn comes."""
        if piece.frozen:
            return
        piece.frozen = True
        blocks = -(-piece.buffer.length // self.mount.blocks.block_size)
        head = piece is self.pending[0] and self._committer is None
        while piece.uploaded < blocks - head:
            self._start_upload(piece)
        if head:  # the committer uploads the last block itself: for a small file, all may be done when this returns
            committer = self.mount.begin(self._commit_frozen())
            if not committer.done():
                self._committer = committer

    def freeze_all(self) -> None:
        """Freeze every open slice."""
        for piece in list(self.pending):
            self.freeze(piece)

    async def flush(self) -> None:
        """Returns when every slice that exists now has been committed or has failed; FsError(EIO) when that takes too long."""
        if not self.pending:
            return
        upto = self._committed + len(self.pending)
        self.freeze_all()
        if self._committed >= upto:
            return
        try:
            async with asyncio.timeout(self.mount.flush_timeout):
                await self._left(upto)
        except TimeoutError:
            log.error("Flushing inode %d took longer than %.0f s", self.ino, self.mount.flush_timeout)
            raise FsError(errno.EIO) from None

    async def settle(self) -> None:
        """As flush, however long it takes."""
        if self.pending:
            upto = self._committed + len(self.pending)
            self.freeze_all()
            await self._left(upto)

    def _left(self, count: int) -> "asyncio.Future[None]":
        """Done when *count* slices have left since the beginning."""
        future = asyncio.get_running_loop().create_future()
        if self._committed >= count:
            future.set_result(None)
        else:
            at = len(self._waiting)  # sorted by count; nearly always the end
            while at and self._waiting[at - 1][0] > count:
                at -= 1
            self._waiting.insert(at, (count, future))
        return future

    # Upload and commit

    def _start_upload(self, piece: PendingSlice) -> None:
        piece.uploads.append(self.mount.spawn(self._upload(piece, self._take_block(piece))))

    def _take_block(self, piece: PendingSlice) -> int:
        """The next block of *piece* to be uploaded, from now on closed to writes."""
        piece.uploaded += 1
        self.mount.uploading += 1
        return piece.uploaded - 1

    async def _upload(self, piece: PendingSlice, indx: int) -> None:
        """Put one block; a failure is kept in the slice."""
        mount = self.mount
        try:
            if not piece.id:
                async with piece.lock:
                    piece.id = piece.id or await self._patiently(mount.sink.new_slice_id)
                    if piece.buffer.kept is not None:
                        piece.buffer.kept.identified(piece.id)
            if not piece.error:
                await mount.blocks.put_block(piece.id, indx, piece.buffer.block(indx), self.tier)
        except JfsError as error:
            if not piece.error:
                log.error("Writing inode %d failed: %s", self.ino, error)
            piece.error = piece.error or _errno_of(error)
            if piece.buffer.kept is not None:
                piece.buffer.kept.end()  # without this block a successor must not commit it
        finally:
            mount.uploading -= 1
            mount.budget.add_dirty(-piece.buffer.drop(indx))
            if not mount.uploading and mount.budget.is_waited_for:
                mount.relieve()

    async def _commit_frozen(self) -> None:
        try:
            while self.pending and self.pending[0].frozen:
                piece = self.pending[0]
                try:
                    await self._finish(piece)
                except (
                    Exception
                ):  # a fault of this program: the data are lost, the handles hear of it, the next slice goes on
                    log.exception("Writing slice %d of inode %d failed", piece.id, self.ino)
                    self._failed(errno.EIO)
                finally:
                    self._remove(piece)
        finally:
            self._committer = None
            self.mount.forget_idle(self)

    async def _finish(self, piece: PendingSlice) -> None:
        """Wait for the uploads of *piece* and commit it, or count the failure."""
        blocks = -(-piece.buffer.length // self.mount.blocks.block_size)
        if piece.uploaded < blocks:
            await self._upload(piece, self._take_block(piece))
        for upload in piece.uploads:
            await upload
        size = piece.buffer.length
        if piece.maybe_committed and not piece.error:
            piece.maybe_committed = False
            known = await self._patiently(lambda: self.mount.sink.read_slices(self.ino, piece.indx, fresh=True))
            if any(one.id == piece.id for one in known):
                return
        if piece.buffer.kept is not None:
            piece.buffer.kept.committing()
        if not piece.error:
            record = Slice(piece.start, piece.id, size, 0, size)
            try:
                await self._patiently(
                    lambda: self.mount.sink.commit_slice(self.ino, piece.indx, piece.start, record, piece.mtime_ns)
                )
                return
            except FsError as error:
                piece.error = error.errno
            except StoreAway as error:  # it certainly was not made
                log.error("Committing slice %d of inode %d failed: %s", piece.id, self.ino, error)
                piece.error = errno.EIO
            except JfsError as error:
                # The record may have been written all the same: deleting the objects could destroy committed data.
                log.error("Committing slice %d of inode %d failed: %s", piece.id, self.ino, error)
                self._failed(errno.EIO)
                return
        self._failed(piece.error)
        if piece.id:
            self.mount.spawn(self._delete(piece.id, size))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer of the database, asked again while it is away or busy: the data are here, and waiting loses nothing."""
        deadline = self.mount.now() + self.mount.patience
        while True:
            try:
                return await ask()
            except StoreAway as error:
                if self.mount.now() > deadline:
                    raise
                reason: JfsError = error
            except FsError as error:
                if error.errno != errno.EAGAIN:
                    raise
                if self.mount.now() > deadline:
                    raise FsError(errno.EIO) from error
                reason = error
            log.warning("Writing inode %d waits for the database: %s", self.ino, reason)
            await asyncio.sleep(PAUSE)

    async def _delete(self, slice_id: int, size: int) -> None:
        try:
            await self.mount.blocks.delete_slice(slice_id, size)
        except ObjectError as error:
            log.warning("Objects of the uncommitted slice %d are left behind: %s", slice_id, error)

    def _failed(self, number: int) -> None:
        self.failures += 1
        self.last_errno = number

    def _remove(self, piece: PendingSlice) -> None:
        self.pending.popleft()
        siblings = self._by_chunk[piece.indx]
        siblings.remove(piece)
        if not siblings:
            del self._by_chunk[piece.indx]
        if piece.buffer.kept is not None:
            piece.buffer.kept.end()
        self.mount.budget.add_dirty(-piece.buffer.drop_all())
        if not self.pending:
            self.length = 0
        self._committed += 1
        while self._waiting and self._waiting[0][0] <= self._committed:
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)


def _errno_of(error: JfsError) -> int:
    """What the application is told of a failed upload."""
    if isinstance(error, FsError):
        return error.errno
    if isinstance(error, StorageReadOnly):
        return errno.EROFS
    return errno.ENOSPC if isinstance(error, StorageFull) else errno.EIO
