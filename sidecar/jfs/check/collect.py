"""What `jfs gc` does to a volume besides comparing it: deletes what nothing uses, and compacts chunks (format §7.2, §7.3).

Order of a deletion as everywhere: records first, then objects, then the reference records. Everything may be repeated, and runs
beside the mounts of the volume: their own jobs and this one see each other's work as done.
"""

from dataclasses import dataclass
from typing import Final

from jfs.check.damage import Damage
from jfs.check.facts import Facts
from jfs.check.objects import NOTHING, Tally
from jfs.check.verify import Bounded
from jfs.errors import FsError, ObjectError
from jfs.format.slices import RECORD, unpack
from jfs.meta.model.keys import ChunkKey
from jfs.meta.operations.compaction import plan, split_delayed
from jfs.meta.store.base import Store
from jfs.meta.volume.compaction import Compaction
from jfs.meta.volume.deletion import Deletion
from jfs.meta.volume.jobs import Jobs

_BATCH: Final = 256
# What deleting may put right: records that hold on to objects nobody can reach.
LEAKS: Final = frozenset({"leaked", "removed", "leftover"})


def is_leak(facts: Facts, damage: Damage) -> bool:
    """Whether a damage is a leak of metadata, to be removed with `--delete`."""
    if damage.kind == "references":
        return damage.text.split(" should be ", 1)[1].startswith("0,")
    return damage.kind in LEAKS


@dataclass(slots=True)
class Compacted:
    """Chunks that became shorter, and the slices (records) and bytes that were rewritten."""

    chunks: int = 0
    slices: int = 0
    bytes: int = 0
    failed: int = 0


async def compact_all(store: Store, compaction: Compaction, at_once: int) -> Compacted:
    """Compact every chunk whose list can be made shorter."""
    done = Compacted()

    async def compact(ino: int, indx: int, raw: bytes) -> None:
        records = len(raw) // RECORD.size
        shorter = False
        try:
            while await compaction.compact(ino, indx):
                shorter = True
        except (ObjectError, FsError):
            done.failed += 1
        if shorter:
            done.chunks += 1
            done.slices += records

    bounded = Bounded(at_once)
    async for key, raw in store.scan(ChunkKey):
        if isinstance(raw, bytes) and len(raw) >= 2 * RECORD.size:
            made = plan(unpack(raw))
            if made is not None:
                done.bytes += made.size
                await bounded.add(compact(key.ino, key.indx, raw))
    await bounded.finish()
    return done


async def delete_files(deletion: Deletion, facts: Facts) -> Tally:
    """Delete the data of all files that wait for it."""
    done = NOTHING
    waiting = [(ino, length) for ino, (length, _) in facts.queued.items() if ino not in facts.nodes]
    for start in range(0, len(waiting), _BATCH):
        batch = waiting[start : start + _BATCH]
        await deletion.delete_files(batch)
        for _, length in batch:
            done = done.plus(length)
    return done


async def delete_delayed(store: Store, jobs: Jobs, before: int) -> Tally:
    """Delete replaced slices that have been kept for the trash days; *before* in unix seconds."""
    done = await count_delayed(store, before)
    await jobs.expire_delayed()
    return done


async def count_delayed(store: Store, before: int) -> Tally:
    """Slices of the delayed lists older than *before*."""
    found = NOTHING
    async for _, since, raw in store.delayed_slices():
        if since < before:
            for slice_id, size in split_delayed(raw):
                if slice_id:
                    found = found.plus(size)
    return found


async def delete_pending(store: Store, deletion: Deletion) -> int:
    """Delete the objects of slices that nothing refers to; how many there were."""
    count = 0
    batch: list[tuple[int, int]] = []
    for one in [one async for one in store.unreferenced_slices()]:
        batch.append(one)
        if len(batch) == _BATCH:
            await deletion.delete_unreferenced(batch)
            count, batch = count + len(batch), []
    await deletion.delete_unreferenced(batch)
    return count + len(batch)
