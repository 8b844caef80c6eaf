"""Writeback (`--writeback`, format §6.7): blocks are acknowledged when they lie in `rawstaging/` and uploaded later.

Place in the flow: `chunk.blocks.put_block` → `stage`; here → `upload` (BlockStore's), which puts an object. Invariants: a staged file goes
only after its object is in the storage, or when its slice was deleted; a block whose staging fails or takes too long is not staged, and the
caller uploads it itself. What a killed mount left is found and uploaded by the next one that uses the directory, by the real client too.
Concurrency: event loop; files are written and read in threads, small ones in the loop. One task looks for what is due and starts at most
*workers* uploads. Two processes that share a directory may both upload a block, which changes nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from jfs.chunk.local import checksum
from jfs.chunk.local.directory import CacheDirectory, Claim
from jfs.chunk.local.disk import DiskCache
from jfs.chunk.local.layout import ident
from jfs.errors import ObjectError
from jfs.metrics import REGISTRY, Registry
from jfs.object.base import Data
from jfs.object.pread import read_all

log = logging.getLogger(__name__)
_INLINE: Final = 64 << 10  # bytes; writing less takes less time than an executor hop
_FOREVER: Final = 1e9  # seconds
_AGAIN: Final = 60.0  # seconds after which a failed upload is tried again, and the directories are scanned again


@dataclass(frozen=True, slots=True)
class StagingOptions:
    """*delay* in seconds before an upload; *hours* (from, to) in which uploads may begin; blocks of *threshold* bytes or more (0: none) and
    those beyond *most* being written at once are not staged; *patience* in seconds for writing one."""

    delay: float = 0.0
    hours: tuple[int, int] | None = None
    threshold: int = 0
    most: int = 1000
    patience: float = 60.0


def may_upload(hours: tuple[int, int] | None, hour: int) -> bool:
    """Whether *hour* (0 … 23, local time) lies in [from, to), which may pass midnight."""
    if hours is None or hours[0] == hours[1]:
        return True
    begin, end = hours
    return begin <= hour < end if begin < end else hour >= begin or hour < end


class _Staged:
    """A block that waits for its upload."""

    __slots__ = ("directory", "due", "failed", "key", "length", "written")

    def __init__(self, directory: CacheDirectory, key: str, length: int, written: float, due: float) -> None:
        self.directory = directory
        self.key = key
        self.length = length
        self.written = written
        self.due = due  # by the monotonic clock
        self.failed = False


class Staging:
    """The staged blocks of a mount. *upload(key, data)* stores an object (ObjectError). With *accepting* false nothing new is staged, but
    what earlier mounts left is uploaded."""

    def __init__(
        self,
        cache: DiskCache,
        upload: Callable[[str, Data], Awaitable[None]],
        options: StagingOptions | None = None,
        *,
        accepting: bool = True,
        workers: int = 20,
        registry: Registry = REGISTRY,
    ) -> None:
        self._cache = cache
        self._upload = upload
        self._options = options or StagingOptions()
        self._accepting = accepting
        self._workers = workers
        self._waiting: dict[int, _Staged] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._writing = 0
        self._drained: list[asyncio.Future[None]] = []
        self._hurry = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._bytes = 0
        self._written = registry.counter("staging_write_bytes", "Bytes written to the staging area.")
        self._errors = registry.counter("staging_block_errors", "Blocks that could not be staged.")
        self._delays = registry.counter("staging_block_delay_seconds", "Seconds that blocks waited for their upload.")
        registry.gauge("staging_blocks", lambda: len(self), "Blocks that are not uploaded yet.")
        registry.gauge("staging_block_bytes", lambda: self._bytes, "Bytes of them.")
        registry.gauge("staging_writing_blocks", lambda: self._writing, "Blocks being staged.")

    def __len__(self) -> int:
        """Blocks that are not uploaded yet."""
        return len(self._waiting) + len(self._running)

    def start(self) -> None:
        """Begin to upload, and to look for what earlier mounts left."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End; what is not uploaded stays for the next mount."""
        tasks = [*self._running.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if len(self):
            log.warning("%d staged blocks (%d bytes) are left for the next mount to upload", len(self), self._bytes)

    async def drain(self) -> None:
        """Returns when everything staged before is uploaded, whatever delay and hours say."""
        if not len(self):
            return
        self._hurry = True
        self._changed.set()
        done = asyncio.get_running_loop().create_future()
        self._drained.append(done)
        await done

    # -- staging

    async def stage(self, slice_id: int, indx: int, data: Data) -> bool:
        """Store a block for later; False when it is to be uploaded now. *data* may change once this has returned."""
        options, length = self._options, len(data)
        if not self._accepting or 0 < options.threshold <= length or self._writing >= options.most:
            return False
        key = self._cache.key(slice_id, indx, length)
        directory = self._cache.home(key)
        if directory is None or directory.staging_lacks:
            self._errors.value += 1
            return False
        claim = Claim()
        self._writing += 1
        try:
            if length <= _INLINE:
                directory.stage(key, data, claim)
            else:
                async with asyncio.timeout(options.patience):
                    await asyncio.to_thread(directory.stage, key, data, claim)
        except (OSError, TimeoutError) as error:
            claim.abandon()  # the thread may still be at it: it must not publish what may change from now on
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                directory.failed(error)
            directory.unstage(key)
            log.warning("block %s could not be staged in %s and is uploaded directly: %s", key, directory.path, error)
            self._errors.value += 1
            return False
        except asyncio.CancelledError:
            claim.abandon()
            raise
        finally:
            self._writing -= 1
        self._written.value += length
        self._cache.note(directory, slice_id, indx, length)
        self._add(ident(slice_id, indx), _Staged(directory, key, length, time.time(), self._due(0.0)))
        return True

    def _due(self, age: float) -> float:
        return time.monotonic() + max(self._options.delay - age, 0.0)

    def _add(self, number: int, staged: _Staged) -> None:
        if number in self._waiting or number in self._running:
            return
        self._waiting[number] = staged
        self._cache.staged.add(number)
        self._bytes += staged.length
        self._changed.set()

    async def forget(self, slice_id: int, indx: int) -> None:
        """The slice was deleted: its block needs no upload. Returns when none is under way, so that the object can be deleted after it."""
        number = ident(slice_id, indx)
        staged = self._waiting.pop(number, None)
        if staged is not None:
            self._gone(number, staged)
            await asyncio.to_thread(staged.directory.unstage, staged.key)
            return
        running = self._running.get(number)
        if running is not None:
            await asyncio.wait([running])
            staged = self._waiting.pop(number, None)  # it has failed and was to be tried again
            if staged is not None:
                self._gone(number, staged)
                await asyncio.to_thread(staged.directory.unstage, staged.key)

    def _gone(self, number: int, staged: _Staged) -> None:
        self._cache.staged.discard(number)
        self._bytes -= staged.length
        if not len(self):
            self._hurry = False
            for waiter in self._drained:
                if not waiter.done():
                    waiter.set_result(None)
            self._drained.clear()

    # -- uploading

    async def _run(self) -> None:
        scanned = float("-inf")
        while True:
            self._changed.clear()
            now = time.monotonic()
            if now - scanned >= _AGAIN and (self._accepting or scanned < 0):  # others look after what they stage
                scanned = now
                await self._scan()
            pause = max(_AGAIN - (time.monotonic() - scanned), 1.0) if self._accepting or len(self) else _FOREVER
            if self._hurry or may_upload(self._options.hours, time.localtime().tm_hour):
                pause = min(pause, self._begin())
            try:
                async with asyncio.timeout(max(pause, 0.01)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _begin(self) -> float:
        """Start what is due; seconds until the next block is."""
        now, soonest = time.monotonic(), _AGAIN
        for number, staged in list(self._waiting.items()):
            if len(self._running) >= self._workers:
                break
            if staged.due <= now or (self._hurry and not staged.failed):
                del self._waiting[number]
                self._running[number] = asyncio.create_task(self._send(number, staged))
            else:
                soonest = min(soonest, staged.due - now)
        return soonest

    async def _send(self, number: int, staged: _Staged) -> None:
        """Upload one block; it waits again when that fails."""
        done = False
        try:
            data = await asyncio.to_thread(_content, staged)
            if data is not None:
                await self._upload(staged.key, data)
                await asyncio.to_thread(staged.directory.unstage, staged.key)
                self._delays.value += max(time.time() - staged.written, 0.0)
            done = True
        except ObjectError as error:
            log.warning("the staged block %s is kept and uploaded later: %s", staged.key, error)
        except OSError as error:
            staged.directory.failed(error)
            log.warning("the staged block %s cannot be read and is tried again later: %s", staged.key, error)
        finally:
            del self._running[number]
            if done:
                self._gone(number, staged)
            else:
                staged.failed = True
                staged.due = time.monotonic() + (1.0 if self._hurry else _AGAIN)
                self._waiting[number] = staged
            self._changed.set()

    async def _scan(self) -> None:
        """Take in what lies in the staging areas."""
        for directory in self._cache.directories:
            if not directory.usable:
                continue
            try:
                found = await asyncio.to_thread(directory.staged)
            except OSError as error:
                directory.failed(error)
                continue
            now = time.time()
            for each in found:
                number = ident(each.name.slice_id, each.name.indx)
                if number not in self._waiting and number not in self._running:
                    staged = _Staged(directory, each.key, each.name.length, each.written, self._due(now - each.written))
                    self._add(number, staged)


def _content(staged: _Staged) -> bytes | None:
    """*Thread.* The data of a staged block; None when the file is gone (another process uploaded it) or is not what was written, which is
    logged: such a file stays where it is for somebody to look at."""
    path = staged.directory.staged_path(staged.key)
    try:
        with open(path, "rb", buffering=0) as file:
            content = read_all(file.fileno(), 0, staged.length + checksum.trailer_length(staged.length))
    except FileNotFoundError:
        return None
    data, sums = content[: staged.length], content[staged.length :]
    if len(data) != staged.length or (sums and not checksum.is_intact("full", sums, staged.length, 0, data)):
        log.error("the staged block %s is damaged and cannot be uploaded", path)
        return None
    return data
