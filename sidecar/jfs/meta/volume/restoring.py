"""Taking removed entries out of the trash (format §3.13, §10 restore): the tree is built again inside the trash, or put back where it was.

The name of an entry in the trash tells its directory and its name; each is moved by one rename that replaces nothing. A directory
that was removed too is found by its inode wherever it lies by now, so the order does not matter. What cannot be moved is told and
left. Concurrency: so many renames at once as the caller says; clients may use the volume meanwhile.
"""

import asyncio
import random
from typing import NamedTuple

from jfs.errors import FsError
from jfs.format.constants import DIRECTORY, TRASH
from jfs.meta.operations.access import SUPERUSER
from jfs.meta.operations.renaming import NOREPLACE, RESTORE
from jfs.meta.volume.entries import Entries


class Restored(NamedTuple):
    """How many entries were moved and left (their directory is not in the trash), and those that failed with the reason."""

    moved: int
    left: int
    failed: list[tuple[bytes, FsError]]


class Removed(NamedTuple):
    """An entry of the trash: its name there, its inode, and the directory and name it had."""

    entry: bytes
    ino: int
    is_directory: bool
    parent: int
    name: bytes


def parse(entry: bytes) -> tuple[int, bytes] | None:
    """Directory and name out of `<parent>-<inode>-<name>`; None when it is something else."""
    parts = entry.split(b"-", 2)
    if len(parts) != 3 or not parts[0].isdigit() or not parts[1].isdigit() or not parts[2]:
        return None
    return int(parts[0]), parts[2]


async def restore_hour(volume: Entries, hour: bytes, *, put_back: bool, at_once: int) -> Restored:
    """Restore what was removed in *hour* (`YYYY-MM-DD-HH`, UTC). FsError(ENOENT) when nothing was."""
    directory, _ = await volume.lookup(SUPERUSER, TRASH, hour)
    found: list[Removed] = []
    left = 0
    async for page in volume.list_directory(SUPERUSER, directory, plus=False):
        for name, entry in zip(page.names, page.entries, strict=True):
            origin = parse(name)
            if origin is None:
                left += 1
            else:
                found.append(Removed(name, entry.ino, entry.kind == DIRECTORY, *origin))
    if not put_back:
        directories = {one.ino for one in found if one.is_directory}
        inside = [one for one in found if one.parent in directories]
        left += len(found) - len(inside)
        found = inside
    random.shuffle(found)  # neighbours have the same directory: side by side they would only wait for each other
    failed: list[tuple[bytes, FsError]] = []
    free = asyncio.Semaphore(at_once)

    async def move(one: Removed) -> None:
        async with free:
            try:
                await volume.rename(SUPERUSER, directory, one.entry, one.parent, one.name, NOREPLACE | RESTORE)
            except FsError as error:
                failed.append((one.entry, error))

    await asyncio.gather(*map(move, found))
    await volume._ensure_stats(
        *(one.ino for one in found if one.is_directory)
    )  # the trash keeps no usage of its directories
    return Restored(len(found) - len(failed), left, failed)
