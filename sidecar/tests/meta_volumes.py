"""Volumes for the metadata tests: formatted databases, clients on them with a clock that tests move, and the audit of a volume.

`audit` recomputes every side record (counters, usage, links, parents, references) from the tree and compares.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jfs.check import check
from jfs.errors import FsError
from jfs.format.constants import CHUNK, DIRECTORY, FILE, ROOT, TRASH, align4k
from jfs.format.setting import new_setting
from jfs.format.slices import Slice, unpack
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import CounterKey, DirStat, DirStatKey, NodeKey, SliceRefKey
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume import SUPERUSER, Meta, MetaOptions, SessionInfo, existing_setting, format_volume
from jfs.meta.volume.session import EXPIRE_BEATS
from store_engines import OpenClient, database

UUID = "2d4dbcce-1357-42d9-91c0-a26ae5ebcd1a"
START = 1_700_000_000 * 10**9


class Clock:
    """Nanoseconds; stands still unless a test moves it, but for one microsecond per look so that no two moments are equal."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        self.now += 1000
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 10**9)


class Volume:
    """A formatted volume in a database, opened by any number of clients."""

    def __init__(self, open_store: OpenClient, clock: Clock) -> None:
        self.clock = clock
        self.deleted: list[tuple[int, int]] = []
        self.sound = True
        self._open_store = open_store
        self._clients: list[Meta] = []

    async def store(self) -> Store:
        """Another connection to the database."""
        return await self._open_store()

    async def client(self, *, session: bool = True, ahead: float = 0.0, **options: Any) -> Meta:
        """Another mounted client, caches off unless asked for; its clock is *ahead* by so many seconds."""
        offset = int(ahead * 10**9)
        defaults: dict[str, Any] = {
            "attr_timeout": 0.0,
            "entry_timeout": 0.0,
            "dir_entry_timeout": 0.0,
            "skip_dir_mtime": 0.0,
        }
        meta = await Meta.load(
            await self._open_store(),
            MetaOptions(**(defaults | options)),
            delete_objects=self._delete,
            clock=lambda: self.clock() + offset,
            info=SessionInfo(mount_point="/mnt"),
        )
        self._clients.append(meta)
        if session:
            await meta.start_session()
        return meta

    async def beat(self, *clients: Meta, beats: int = EXPIRE_BEATS + 1) -> None:
        """Beat so often that a session which is expired and does not beat is taken for dead."""
        for _ in range(beats):
            self.clock.advance(12)
            for client in clients:
                await client.heartbeat()

    async def _delete(self, id: int, size: int) -> None:
        self.deleted.append((id, size))

    async def close(self) -> None:
        for meta in self._clients:
            await meta.close()


@asynccontextmanager
async def volume(engine: str, folder: Path, **setting: Any) -> AsyncIterator[Volume]:
    """A new volume; *setting* goes to `new_setting` (no trash unless asked for). At its end it is examined, unless the test
    has damaged it and said so (`sound = False`)."""
    clock = Clock()
    async with database(engine, folder) as open_store:
        members: dict[str, Any] = {"trash_days": 0, "bucket": "/var/jfs/", **setting}
        record = new_setting("demo-volume", UUID, **members)
        await format_volume(await open_store(), record, force=False, no_update=False, now=clock())
        made = Volume(open_store, clock)
        try:
            yield made
        finally:
            await made.close()
        if made.sound:
            await assert_sound(await open_store())


async def assert_sound(store: Store) -> None:
    """`jfs fsck` finds nothing wrong with the metadata, if there are any."""
    if await existing_setting(store) is not None:
        damages = await check(store)
        assert not damages, damages


async def errno_of(awaitable: Any) -> int:
    """The errno that *awaitable* ends with, 0 when it succeeds."""
    try:
        await awaitable
    except FsError as error:
        return error.errno
    return 0


async def new_file(meta: Meta, name: bytes, *, parent: int = ROOT, mode: int = 0o644) -> int:
    """A closed file; its inode."""
    ino, _, _ = await meta.create(SUPERUSER, parent, name, mode, os.O_RDWR)
    await meta.release(ino)
    return ino


async def write(meta: Meta, ino: int, offset: int, size: int) -> list[tuple[int, int]]:
    """Commit *size* bytes at *offset* as the writer would; the slices (id, size) made."""
    made = []
    while size:
        pos = offset % CHUNK
        part = min(size, CHUNK - pos)
        id = await meta.new_slice_id()
        await meta.commit_slice(ino, offset // CHUNK, pos, Slice(pos, id, part, 0, part), meta._clock())
        made.append((id, part))
        offset, size = offset + part, size - part
    return made


async def entries(store: Store, ino: int) -> dict[bytes, tuple[int, Attr | None]]:
    """Name → (inode, attributes) of a directory."""
    found: dict[bytes, tuple[int, Attr | None]] = {}
    async for page in store.list_directory(ino, plus=True):
        attrs = page.attrs or [None] * len(page.names)
        found |= {n: (e.ino, a) for n, e, a in zip(page.names, page.entries, attrs, strict=True)}
    return found


async def audit(store: Store, *, dir_stats: bool = True) -> None:
    """Recompute every side record from the tree; AssertionError where one differs."""
    nodes = {ino: attr async for ino, attr in store.nodes()}
    links: Counter[int] = Counter()
    parents: dict[int, Counter[int]] = {}
    pending = [ROOT, TRASH]
    while pending:
        directory = pending.pop()
        if directory not in nodes:
            continue
        listing = await entries(store, directory)
        stat = DirStat(0, 0, 0)
        subdirectories = 0
        for name, (ino, attr) in listing.items():
            assert attr is not None, f"entry {name!r} of {directory} has no inode record"
            links[ino] += 1
            parents.setdefault(ino, Counter())[directory] += 1
            length = attr.length if attr.kind == FILE else 0
            stat = DirStat(stat.length + length, stat.space + align4k(length), stat.inodes + 1)
            if attr.kind == DIRECTORY:
                subdirectories += 1
                pending.append(ino)
                assert attr.parent == directory
        if directory < TRASH:
            assert nodes[directory].nlink == 2 + subdirectories, f"nlink of directory {directory}"
        if dir_stats and directory != TRASH:
            (kept,) = await store.get(DirStatKey(directory))
            if kept is None and nodes[directory].parent > TRASH:
                continue  # removed with the directory, made again when it comes back (format §5.3 rmdir)
            assert kept == stat, f"usage of directory {directory}: {kept} instead of {stat}"
    space = inodes = 0
    for ino, attr in nodes.items():
        if ino in (ROOT, TRASH):
            continue
        space += align4k(attr.length) if attr.kind == FILE else 4096
        inodes += 1
        if attr.kind != DIRECTORY:
            assert attr.nlink == links[ino], f"nlink of inode {ino}: {attr.nlink} instead of {links[ino]}"
            await _check_parents(store, ino, attr, parents.get(ino, Counter()))
    used, total = await store.get(CounterKey("usedSpace"), CounterKey("totalInodes"))
    assert (used or 0, total or 0) == (space, inodes)
    wrong = await _wrong_references(store, nodes)
    for _ in range(400):  # data of removed files may be on their way out while this looks
        if not wrong:
            break
        await asyncio.sleep(0.01)
        wrong = await _wrong_references(store, nodes)
    assert not wrong


async def _wrong_references(store: Store, nodes: dict[int, Attr]) -> dict[tuple[int, int], tuple[int, int]]:
    """Slices (id, size) whose reference count is not the number of records in chunk lists: (the count, that number)."""
    references: Counter[tuple[int, int]] = Counter()
    queued = {ino async for ino, _, _ in store.deleted_files()}
    async for ino, _, raw in store.chunks():
        assert ino in nodes or ino in queued, f"chunk list of inode {ino}, which is gone"
        references.update((record.id, record.size) for record in unpack(raw) if record.id)
    found = {}
    for (id, size), number in references.items():
        (count,) = await store.get(SliceRefKey(id, size))
        if count != number:
            found[id, size] = count, number
    return found


async def _check_parents(store: Store, ino: int, attr: Attr, wanted: Counter[int]) -> None:
    if attr.parent:
        assert not attr.nlink or wanted == {attr.parent: 1}
        return

    async def read(tx: Tx) -> dict[int, int]:
        return await tx.parents(ino)

    assert await store.run(read) == wanted, f"parents of inode {ino}"


async def node(store: Store, ino: int) -> Attr | None:
    """The stored attributes."""
    attr: Attr | None
    (attr,) = await store.get(NodeKey(ino))
    return attr


async def settle(meta: Meta) -> None:
    """Wait until the background has deleted what was submitted."""
    if meta._letting_go:
        await asyncio.wait(meta._letting_go)
    await meta._deletion.drain(20)
