"""Blocks one by one: those of chosen files by name instead of by listing, and the content of blocks where it can be told.

A plain block has no checksum of its own; what can be wrong with it beside its size shows only where the storage keeps one (S3 objects
with `Crc32c`). A compressed block must decompress to its length. Concurrency: at most as many requests at once as the caller says.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from jfs.check.facts import Facts
from jfs.check.objects import Block, Expectation, Lost
from jfs.chunk.blocks import BlockStore
from jfs.chunk.naming import block_count
from jfs.errors import ObjectError, ObjectNotFound
from jfs.format.slices import RECORD
from jfs.meta.model.keys import ChunkKey
from jfs.meta.store.base import Store
from jfs.object.base import ObjectStorage


class Bounded:
    """Runs jobs in tasks, so many at once; `add` waits while too many are under way."""

    def __init__(self, at_once: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: list[BaseException] = []

    async def add(self, job: Awaitable[None]) -> None:
        """Start *job*; the first failure of an earlier one is raised."""
        await self._free.acquire()
        task = asyncio.ensure_future(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._failed:
            raise self._failed[0]

    async def _run(self, job: Awaitable[None]) -> None:
        try:
            await job
        except Exception as error:  # raised by the next `add` or `finish`
            self._failed.append(error)
        finally:
            self._free.release()

    async def finish(self) -> None:
        """Wait for all; the first failure is raised."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._failed:
            raise self._failed[0]


def in_scope(facts: Facts, top: int, *, recursive: bool) -> Callable[[int], bool]:
    """Whether an inode is *top*, or with *recursive* lies anywhere below it."""
    if not recursive:
        return lambda ino: ino == top
    known: dict[int, bool] = {top: True}

    def lies_below(ino: int) -> bool:
        way: list[int] = []
        at: int | None = ino
        while at is not None and at not in known:
            if at in facts.all_parents and at == ino:
                return any(lies_below(parent) for parent in facts.all_parents[at])
            known[at] = False  # ends loops
            way.append(at)
            at = facts.first_parent.get(at)
        answer = at is not None and known[at]
        known.update(dict.fromkeys(way, answer))
        return answer

    return lies_below


async def find_blocks(
    store: Store, expectation: Expectation, wanted: Callable[[int], bool]
) -> tuple[list[Block], dict[int, list[int]]]:
    """The blocks of all slices in the lists of the inodes *wanted*, and the inodes of each slice."""
    owners: dict[int, list[int]] = {}
    blocks: list[Block] = []
    async for key, raw in store.scan(ChunkKey):
        if isinstance(raw, bytes) and wanted(key.ino):
            for _, slice_id, size, _, _ in RECORD.iter_unpack(raw):
                if not slice_id:
                    continue
                if slice_id not in owners:
                    count = block_count(size, expectation.block_size)
                    blocks += [Block(slice_id, size, n, expectation.key(slice_id, size, n)) for n in range(count)]
                inodes = owners.setdefault(slice_id, [])
                if key.ino not in inodes:
                    inodes.append(key.ino)
    return blocks, owners


async def look_at(
    storage: ObjectStorage,
    expectation: Expectation,
    blocks: Iterable[Block],
    owners: dict[int, list[int]],
    *,
    at_once: int,
) -> tuple[list[Lost], list[tuple[Block, int]], int]:
    """Ask for each block by name: those that are missing, those of a wrong size, and the bytes of what is there."""
    lost: list[Lost] = []
    wrong: list[tuple[Block, int]] = []
    found = 0

    async def look(block: Block) -> None:
        nonlocal found
        try:
            info = await storage.head(block.key)
        except ObjectNotFound:
            lost.append(Lost(block, owners[block.slice_id]))
            return
        found += info.size
        if not expectation.may_hold(block, info.size):
            wrong.append((block, info.size))

    bounded = Bounded(at_once)
    for block in blocks:
        await bounded.add(look(block))
    await bounded.finish()
    return lost, wrong, found


class ContentCheck:
    """Reads whole blocks; `bad` has those that cannot be what was written, and why."""

    def __init__(self, blocks: BlockStore, at_once: int) -> None:
        self.bad: list[tuple[Block, str]] = []
        self._blocks = blocks
        self._bounded = Bounded(at_once)

    async def add(self, block: Block) -> None:
        """Check a block, in the background."""
        await self._bounded.add(self._read(block))

    async def _read(self, block: Block) -> None:
        try:
            await self._blocks.get_block(block.slice_id, block.size, block.indx)
        except ObjectNotFound:
            return  # listed and gone: it was deleted meanwhile, or it is among the missing ones
        except ObjectError as error:
            self.bad.append((block, str(error)))

    async def finish(self) -> None:
        """Wait for all reads."""
        await self._bounded.finish()
