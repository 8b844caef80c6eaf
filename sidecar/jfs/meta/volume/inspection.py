"""What `status` tells beyond the usual when asked: a session's open removed files and locks, and what waits to be deleted.

Names and order are the real client's. Reads only; long on big volumes, without a transaction: the numbers are those of a volume
in use.
"""

from collections.abc import AsyncIterator
from typing import Any

from jfs.errors import CorruptRecord
from jfs.format.constants import DIRECTORY, TRASH
from jfs.meta.model.locks import FlockKey, PlockKey, unpack_ranges
from jfs.meta.operations.compaction import split_delayed
from jfs.meta.store.base import Store


async def session_detail(store: Store, sid: int) -> dict[str, Any]:
    """Sustained inodes, flocks and fcntl locks of session *sid*; members without content are left out. CorruptRecord."""
    sustained = sorted([ino async for ino in store.sustained(sid)])
    flocks: list[dict[str, Any]] = []
    async for ino, records in _records(store, FlockKey):
        flocks += (
            {"Inode": ino, "Owner": lock.owner, "Ltype": "W" if lock.exclusive else "R"}
            for lock in records
            if lock.sid == sid
        )
    plocks: list[dict[str, Any]] = []
    async for ino, records in _records(store, PlockKey):
        for lock in records:
            if lock.sid == sid:
                ranges = [
                    {"Type": one.kind, "Pid": one.pid, "Start": one.start, "End": one.end}
                    for one in unpack_ranges(lock.ranges)
                ]
                plocks.append({"Inode": ino, "Owner": lock.owner, "Records": ranges})
    flocks.sort(key=_inode)
    plocks.sort(key=_inode)
    found = {"Sustained": sustained, "Flocks": flocks, "Plocks": plocks}
    return {name: value for name, value in found.items() if value}


def _inode(lock: dict[str, Any]) -> int:
    return int(lock["Inode"])


async def _records(store: Store, kind: Any) -> AsyncIterator[tuple[int, Any]]:
    async for key, record in store.scan(kind):
        if isinstance(record, CorruptRecord):
            raise record
        yield key.ino, record


async def waiting(store: Store) -> dict[str, int]:
    """Numbers and bytes of what is in the trash or waits to be deleted; those that are 0 are left out."""
    found = dict.fromkeys(
        (
            *("TrashFileCount", "TrashFileSize", "PendingDeletedFileCount", "PendingDeletedFileSize"),
            *("TrashSliceCount", "TrashSliceSize", "PendingDeletedSliceCount", "PendingDeletedSliceSize"),
        ),
        0,
    )
    async for hours in store.list_directory(TRASH, plus=False):
        for hour in hours.entries:
            async for page in store.list_directory(hour.ino, plus=True):
                for entry, attr in zip(page.entries, page.attrs or (), strict=True):
                    found["TrashFileCount"] += 1
                    if attr is not None and entry.kind != DIRECTORY:
                        found["TrashFileSize"] += attr.length
    async for _, length, _ in store.deleted_files():
        found["PendingDeletedFileCount"] += 1
        found["PendingDeletedFileSize"] += length
    async for _, _, records in store.delayed_slices():
        for slice_id, size in split_delayed(records):
            if slice_id:
                found["TrashSliceCount"] += 1
                found["TrashSliceSize"] += size
    async for _, size in store.unreferenced_slices():
        found["PendingDeletedSliceCount"] += 1
        found["PendingDeletedSliceSize"] += size
    return {name: number for name, number in found.items() if number}
