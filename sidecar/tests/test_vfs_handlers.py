"""The handlers over the real metadata core and data path in memory: open files, lengths, caching, listings, virtual files."""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from jfs.chunk.blocks import BlockFormat, BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.reader import Reader
from jfs.chunk.writer import Writer
from jfs.errors import FsError
from jfs.format.constants import ACCESSLOG_INO, CONFIG_INO, CONTROL_INO, DIRECTORY, FILE, STATS_INO, TRASH
from jfs.format.setting import new_setting
from jfs.fuse import requests
from jfs.fuse.handlers import Handlers
from jfs.fuse.requests import SetAttr, Timeouts
from jfs.meta.connect import connect
from jfs.meta.model.attr import Attr
from jfs.meta.volume import Caller, Meta, MetaOptions, format_volume
from jfs.object.memory import MemoryStorage
from jfs.vfs.access_log import AccessLog, LogReader, mode_text, quoted
from jfs.vfs.commands import Commands
from jfs.vfs.information import Informant
from jfs.vfs.virtual import VirtualFiles

ROOT = Caller(0, 0, 0)
DB = iter(range(1_000_000))
Another = Callable[..., Awaitable["Rig"]]


class Rig:
    """Handlers of one mount of a volume in memory."""

    def __init__(self, meta: Meta, storage: MemoryStorage) -> None:
        self.meta = meta
        self.blocks = BlockStore(storage, BlockFormat(block_size=64 << 10))
        budget = Budget(32 << 20)
        self.writer = Writer(self.blocks, meta, budget)
        self.reader = Reader(self.blocks, meta, budget)
        self.log = AccessLog()
        informant = Informant(meta, name="vol", block_size=64 << 10, hash_prefix=False)

        async def stats() -> str:
            return "juicefs_uptime 1\n"

        async def config() -> str:
            return "{}"

        def changed(parent: int, name: bytes) -> None:
            self.handlers.entry_changed(parent, name)

        commands = Commands(meta, self.reader, informant, settle=self.writer.flush_all, changed=changed)
        virtual = VirtualFiles(self.log, commands, stats=stats, config=config)
        self.handlers = Handlers(meta, self.writer, self.reader, self.log, virtual, timeouts=Timeouts(), xattrs=True)

    async def write(self, name: bytes, data: bytes) -> int:
        ino, _, opened = await self.handlers.create(ROOT, 1, name, 0o644, os.O_WRONLY | os.O_CREAT)
        await self.handlers.write(ROOT, ino, opened.fh, 0, data)
        await self.handlers.flush(ROOT, ino, opened.fh, 0)
        await self.handlers.release(ROOT, ino, opened.fh)
        return ino

    async def names(self, ino: int = 1) -> dict[bytes, int]:
        opened = await self.handlers.opendir(ROOT, ino)
        found: dict[bytes, int] = {}
        cookie = 0
        while items := await self.handlers.readdir(ROOT, ino, opened.fh, cookie, 4096, True):
            found |= {item.name: item.ino for item in items if item is not None}
            cookie += len(items)
        await self.handlers.releasedir(ROOT, ino, opened.fh)
        return found

    async def close(self) -> None:
        await self.writer.close()
        await self.reader.close()
        await self.meta.close()
        await self.blocks.close()


async def open_rig(url: str, storage: MemoryStorage, **options: Any) -> Rig:
    blocks = BlockStore(storage, BlockFormat(block_size=64 << 10))
    meta = await Meta.load(
        await connect(url),
        MetaOptions(no_bgjob=True, **options),
        delete_objects=blocks.delete_slice,  # type: ignore[arg-type]
    )
    await meta.start_session()
    return Rig(meta, storage)


@contextlib.asynccontextmanager
async def made(trash_days: int) -> AsyncIterator[Another]:
    url = f"memory://handlers-{next(DB)}"
    storage = MemoryStorage(url)
    store = await connect(url)
    uuid = "b3a1cd7e-70c4-4b1a-8a3c-5f0f3a9f8a11"
    setting = new_setting("vol", uuid, storage="mem", bucket="x", block_size=64 << 10, trash_days=trash_days)
    await format_volume(store, setting, force=False, no_update=False, now=time.time_ns())
    rigs: list[Rig] = []

    async def another(**options: Any) -> Rig:
        rigs.append(await open_rig(url, storage, **options))
        return rigs[-1]

    yield another
    for rig in rigs:
        await rig.close()
    await store.close()


@pytest.fixture
async def volume() -> AsyncIterator[Another]:
    async with made(trash_days=1) as another:
        yield another


@pytest.fixture
async def without_trash() -> AsyncIterator[Another]:
    async with made(trash_days=0) as another:
        yield another


@pytest.fixture
async def rig(volume: Another) -> Rig:
    return await volume()


async def fails(number: int, call: Awaitable[object]) -> None:
    with pytest.raises(FsError) as caught:
        await call
    assert caught.value.errno == number


async def test_length_and_time_of_unwritten_data_are_shown(rig: Rig) -> None:
    h = rig.handlers
    ino, _, opened = await h.create(ROOT, 1, b"f", 0o644, os.O_RDWR | os.O_CREAT)
    await h.setattr(ROOT, ino, SetAttr(requests.MTIME, mtime=10**18), None)
    await h.write(ROOT, ino, opened.fh, 1000, b"x" * 10)
    assert (await h.getattr(ROOT, ino)).length == 1010
    assert (await h.getattr(ROOT, ino)).mtime > 10**9
    assert (await h.lookup(ROOT, 1, b"f"))[1].length == 1010
    assert bytes(await h.read(ROOT, ino, opened.fh, 995, 100)) == bytes(5) + b"x" * 10
    await h.release(ROOT, ino, opened.fh)
    assert (await rig.meta.getattr(ino)).length == 1010


async def test_an_answer_asked_before_a_write_does_not_shorten_the_file(rig: Rig) -> None:
    h = rig.handlers
    ino, attr, opened = await h.create(ROOT, 1, b"f", 0o644, os.O_RDWR | os.O_CREAT)
    before = h.files.changes
    await h.write(ROOT, ino, opened.fh, 0, b"y" * 5000)
    await h.flush(ROOT, ino, opened.fh, 0)
    assert h.files.seen(ino, attr, before).length == 5000  # *attr* has length 0 and is older than the write
    assert bytes(await h.read(ROOT, ino, opened.fh, 0, 10_000)) == b"y" * 5000
    await h.release(ROOT, ino, opened.fh)


async def test_page_cache_is_kept_only_while_nothing_changed(rig: Rig) -> None:
    h = rig.handlers
    ino = await rig.write(b"f", b"1")

    async def keeps() -> bool:
        opened = await h.open(ROOT, ino, os.O_RDONLY)
        await h.release(ROOT, ino, opened.fh)
        return opened.keep_cache

    assert not await keeps()
    assert await keeps()
    opened = await h.open(ROOT, ino, os.O_WRONLY)
    await h.write(ROOT, ino, opened.fh, 0, b"2")
    await h.release(ROOT, ino, opened.fh)
    assert not await keeps()
    assert await keeps()


async def test_page_cache_is_dropped_when_another_mount_wrote(volume: Another) -> None:
    first: Rig = await volume()
    second: Rig = await volume()
    ino = await first.write(b"f", b"1")
    keeps = []
    for _ in range(2):
        opened = await first.handlers.open(ROOT, ino, os.O_RDONLY)
        keeps.append(opened.keep_cache)
        await first.handlers.release(ROOT, ino, opened.fh)
    assert keeps[-1]
    other = await second.handlers.open(ROOT, ino, os.O_WRONLY)
    await second.handlers.write(ROOT, ino, other.fh, 0, b"22")
    await second.handlers.release(ROOT, ino, other.fh)
    opened = await first.handlers.open(ROOT, ino, os.O_RDONLY)
    assert not opened.keep_cache
    assert bytes(await first.handlers.read(ROOT, ino, opened.fh, 0, 10)) == b"22"
    await first.handlers.release(ROOT, ino, opened.fh)


async def test_open_with_truncate_and_create_of_an_existing_file(rig: Rig) -> None:
    h = rig.handlers
    ino = await rig.write(b"f", b"old content")
    opened = await h.open(ROOT, ino, os.O_WRONLY | os.O_TRUNC)
    assert (await h.getattr(ROOT, ino)).length == 0
    await h.write(ROOT, ino, opened.fh, 0, b"new")
    await h.release(ROOT, ino, opened.fh)
    again, attr, opened = await h.create(ROOT, 1, b"f", 0o600, os.O_RDWR | os.O_CREAT)
    assert (again, attr.length) == (ino, 3)
    await h.release(ROOT, ino, opened.fh)
    _, attr, opened = await h.create(ROOT, 1, b"f", 0o600, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    assert attr.length == 0
    await h.release(ROOT, ino, opened.fh)
    await fails(errno.EEXIST, h.create(ROOT, 1, b"f", 0o600, os.O_RDWR | os.O_CREAT | os.O_EXCL))


async def test_truncate_orders_with_pending_writes(rig: Rig) -> None:
    h = rig.handlers
    ino, _, opened = await h.create(ROOT, 1, b"f", 0o644, os.O_RDWR | os.O_CREAT)
    await h.write(ROOT, ino, opened.fh, 0, b"z" * 200_000)
    attr = await h.setattr(ROOT, ino, SetAttr(requests.SIZE, size=100), opened.fh)
    assert attr.length == 100
    assert bytes(await h.read(ROOT, ino, opened.fh, 0, 1000)) == b"z" * 100
    attr = await h.setattr(ROOT, ino, SetAttr(requests.SIZE, size=300), opened.fh)
    assert bytes(await h.read(ROOT, ino, opened.fh, 0, 1000)) == b"z" * 100 + bytes(200)
    await h.release(ROOT, ino, opened.fh)
    await fails(errno.EFBIG, h.setattr(ROOT, ino, SetAttr(requests.SIZE, size=1 << 57), None))


async def test_handles_are_checked(rig: Rig) -> None:
    h = rig.handlers
    ino = await rig.write(b"f", b"1")
    reading = await h.open(ROOT, ino, os.O_RDONLY)
    writing = await h.open(ROOT, ino, os.O_WRONLY)
    assert (reading.fh % 2, writing.fh % 2) == (1, 0)
    await fails(errno.EBADF, h.write(ROOT, ino, reading.fh, 0, b"x"))
    await fails(errno.EBADF, h.read(ROOT, ino, writing.fh, 0, 1))
    await fails(errno.EACCES, h.setattr(ROOT, ino, SetAttr(requests.SIZE, size=0), reading.fh))
    await fails(errno.EBADF, h.read(ROOT, ino, 9999, 0, 1))
    await fails(errno.EBADF, h.readdir(ROOT, 1, 9999, 0, 4096, True))
    await h.release(ROOT, ino, reading.fh)
    await h.release(ROOT, ino, writing.fh)
    await fails(errno.EBADF, h.release(ROOT, ino, writing.fh))
    assert len(h.files) == 0


async def test_time_set_explicitly_survives_pending_data(rig: Rig) -> None:
    h = rig.handlers
    ino, _, opened = await h.create(ROOT, 1, b"f", 0o644, os.O_RDWR | os.O_CREAT)
    await h.write(ROOT, ino, opened.fh, 0, b"data")
    await h.setattr(ROOT, ino, SetAttr(requests.MTIME, mtime=5_000_000_123), opened.fh)
    await h.release(ROOT, ino, opened.fh)
    attr = await rig.meta.getattr(ino)
    assert (attr.mtime, attr.mtimensec, attr.length) == (5, 123, 4)


async def test_listing_begins_with_virtual_files_and_ends(rig: Rig) -> None:
    for number in range(300):
        await rig.handlers.mknod(ROOT, 1, b"%03d" % number, 0o100644, 0)
    found = await rig.names()
    assert list(found)[:4] == [b".accesslog", b".stats", b".config", b".trash"]
    assert len(found) == 4 + 2 + 300
    assert b".control" not in found


async def test_listing_under_way_shows_no_stale_attributes(rig: Rig) -> None:
    h = rig.handlers
    inodes = {}
    for number in range(40):
        inodes[b"%02d" % number] = await rig.write(b"%02d" % number, b"")
    opened = await h.opendir(ROOT, 1)
    first = await h.readdir(ROOT, 1, opened.fh, 0, 320, True)
    writing = await h.open(ROOT, inodes[b"30"], os.O_WRONLY)
    await h.write(ROOT, inodes[b"30"], writing.fh, 0, b"longer")
    await h.unlink(ROOT, 1, b"31")
    await h.rename(ROOT, 1, b"32", 1, b"33", 0)
    rest = await h.readdir(ROOT, 1, opened.fh, len(first), 64 << 10, True)
    shown = {item.name: item.attr for item in rest if item is not None}
    assert shown[b"29"] is not None
    assert shown[b"30"] is None
    assert b"31" not in shown
    assert b"32" not in shown
    assert shown[b"33"] is None
    await h.releasedir(ROOT, 1, opened.fh)
    await h.release(ROOT, inodes[b"30"], writing.fh)


async def test_listing_leaves_out_attributes_of_what_is_not_committed_yet(rig: Rig) -> None:
    h = rig.handlers
    ino, _, writing = await h.create(ROOT, 1, b"pending", 0o644, os.O_WRONLY | os.O_CREAT)
    await h.write(ROOT, ino, writing.fh, 0, b"data")
    opened = await h.opendir(ROOT, 1)
    shown = {item.name: item.attr for item in await h.readdir(ROOT, 1, opened.fh, 0, 4096, True) if item}
    assert shown[b"pending"] is None
    assert (await h.lookup(ROOT, 1, b"pending"))[1].length == 4
    await h.releasedir(ROOT, 1, opened.fh)
    await h.release(ROOT, ino, writing.fh)


async def test_rewinding_lists_anew(rig: Rig) -> None:
    h = rig.handlers
    opened = await h.opendir(ROOT, 1)
    await h.readdir(ROOT, 1, opened.fh, 0, 4096, False)
    await h.mkdir(ROOT, 1, b"later", 0o755)
    again = await h.readdir(ROOT, 1, opened.fh, 0, 4096, False)
    assert b"later" in [item.name for item in again if item is not None]
    await h.releasedir(ROOT, 1, opened.fh)


async def test_virtual_names_cannot_be_changed(rig: Rig) -> None:
    h = rig.handlers
    for name in (b".stats", b".trash", b".control"):
        await fails(errno.EEXIST, h.mkdir(ROOT, 1, name, 0o755))
        await fails(errno.EEXIST, h.create(ROOT, 1, name, 0o644, os.O_CREAT))
        await fails(errno.EPERM, h.unlink(ROOT, 1, name))
        await fails(errno.EPERM, h.rename(ROOT, 1, name, 1, b"x", 0))
    await fails(errno.EPERM, h.setattr(ROOT, STATS_INO, SetAttr(requests.MODE, mode=0o777), None))
    await fails(errno.EPERM, h.setxattr(ROOT, STATS_INO, b"user.x", b"", 0))
    ino, _ = await h.mkdir(ROOT, 1, b"d", 0o755)
    await h.mkdir(ROOT, ino, b".stats", 0o755)  # only the root has virtual files


async def test_virtual_files_by_name(rig: Rig) -> None:
    h = rig.handlers
    assert (await h.lookup(ROOT, 1, b".accesslog"))[0] == ACCESSLOG_INO
    assert (await h.lookup(ROOT, 1, b".config"))[0] == CONFIG_INO
    ino, attr = await h.lookup(ROOT, 1, b".trash")
    assert (ino, attr.kind, attr.mode, attr.length) == (TRASH, DIRECTORY, 0o555, 0)
    child, _ = await h.mkdir(ROOT, 1, b"d", 0o755)
    assert (await h.lookup(ROOT, child, b".control"))[0] == CONTROL_INO
    await fails(errno.ENOENT, h.lookup(ROOT, child, b".stats"))
    opened = await h.open(ROOT, STATS_INO, os.O_RDONLY)
    assert opened.direct_io
    assert bytes(await h.read(ROOT, STATS_INO, opened.fh, 7, 7)) == b"_uptime"
    await h.release(ROOT, STATS_INO, opened.fh)
    await fails(errno.EACCES, h.open(ROOT, STATS_INO, os.O_RDWR))


async def test_control_answers_info_and_refuses_the_rest(rig: Rig) -> None:
    h = rig.handlers
    ino = await rig.write(b"f", b"q" * 70_000)
    opened = await h.open(ROOT, CONTROL_INO, os.O_RDWR)
    request = (1005).to_bytes(4, "big") + (11).to_bytes(4, "big") + ino.to_bytes(8, "big") + bytes(3)
    await h.write(ROOT, CONTROL_INO, opened.fh, 0, request[:10])
    await h.write(ROOT, CONTROL_INO, opened.fh, 10, request[10:])
    reply = bytes(await h.read(ROOT, CONTROL_INO, opened.fh, 0, 1 << 16))
    assert reply[0] == 0xFF
    assert len(reply) == 5 + int.from_bytes(reply[1:5], "big")
    text = reply[5:].decode()
    assert '"Length": 70000' in text
    assert '"Paths": ["/f"]' in text
    assert "_0_65536" in text
    assert "_1_4464" in text
    await h.write(ROOT, CONTROL_INO, opened.fh, 0, (1000).to_bytes(4, "big") + bytes(4))
    assert bytes(await h.read(ROOT, CONTROL_INO, opened.fh, 0, 10)) == bytes([errno.EINVAL])
    await h.release(ROOT, CONTROL_INO, opened.fh)


async def test_subdirectory_is_the_root(volume: Another) -> None:
    whole: Rig = await volume()
    ino, _ = await whole.handlers.mkdir(ROOT, 1, b"sub", 0o755)
    below: Rig = await volume(subdir="sub")
    await below.write(b"f", b"1")
    assert b"f" in await whole.names(ino)
    assert b"f" in await below.names()
    await fails(errno.EEXIST, below.handlers.mkdir(ROOT, 1, b".stats", 0o755))


async def test_extended_attributes_follow_the_rules(rig: Rig) -> None:
    h = rig.handlers
    ino = await rig.write(b"f", b"")
    await h.setxattr(ROOT, ino, b"user.a", b"12345", 0)
    assert await h.getxattr(ROOT, ino, b"user.a", 0) == b"12345"
    assert await h.listxattr(ROOT, ino, 0) == [b"user.a"]
    await fails(errno.ERANGE, h.getxattr(ROOT, ino, b"user.a", 4))
    await fails(errno.ERANGE, h.listxattr(ROOT, ino, 3))
    await fails(errno.ENODATA, h.getxattr(ROOT, ino, b"security.capability", 0))
    await fails(errno.ENOTSUP, h.setxattr(ROOT, ino, b"security.capability", b"", 0))
    await fails(errno.ERANGE, h.setxattr(ROOT, ino, b"user.b", bytes(65537), 0))


async def test_access_log_lines_have_the_documented_form() -> None:
    log = AccessLog(clock=lambda: 1_700_000_000.166759)
    reader = log.subscribe()
    attr = (await _attributes())._replace(kind_mode=DIRECTORY << 12 | 0o755, nlink=2, length=4096)
    log.record("lookup", (0, 0, 19010), (1, b"dir"), (2, attr), 0, 0.000294)
    log.record("unlink", (5, 6, 7), (1, b"a\nb"), None, errno.ENOENT, 1.5)
    log.record("read", (0, 0, 1), (9, 3, 4096, 100), b"x" * 50, 0, 0.1)
    first, second, third = (await reader.read(4096)).decode().splitlines()
    assert first.endswith(
        " [uid:0,gid:0,pid:19010] lookup (1,dir): (2,[drwxr-xr-x:0040755,2,0,0,1,2,3,4096]) - OK <0.000294>"
    )
    assert first.startswith(time.strftime("%Y.%m.%d %H:%M:%S", time.localtime(1_700_000_000)) + ".166759")
    assert second.endswith('[uid:5,gid:6,pid:7] unlink (1,"a\\nb") - no such file or directory <1.500000>')
    assert third.endswith("read (9,100,4096,3): (50) - OK <0.100000>")
    log.unsubscribe(reader)
    assert not log.active


async def _attributes() -> Attr:
    return Attr(0, FILE << 12 | 0o644, 0, 0, 1, 0, 2, 0, 3, 0, 1, 0, 0, 1)


async def test_a_slow_log_reader_loses_lines_and_a_quiet_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfs.vfs.access_log.QUIET_SECONDS", 0.01)
    reader = LogReader()
    assert await reader.read(100) == b"#\n"
    for number in range(10_300):
        reader.push(b"%d\n" % number)
    text = b""
    while (piece := await reader.read(1 << 16)) != b"#\n":
        text += piece
    assert len(text.splitlines()) == 10_240


def test_quoting_is_gos() -> None:
    assert quoted(b"plain name") == "plain name"
    assert quoted("ü".encode()) == "ü"
    assert quoted(b'a"b') == '"a\\"b"'
    assert quoted(b"\xff\x01") == '"\\xff\\x01"'
    assert mode_text(0o100644) == "-rw-r--r--:0100644"


async def test_parallel_reads_and_writes_stay_consistent(rig: Rig) -> None:
    h = rig.handlers
    ino, _, opened = await h.create(ROOT, 1, b"f", 0o644, os.O_RDWR | os.O_CREAT)

    async def write(number: int) -> None:
        await h.write(ROOT, ino, opened.fh, number * 1000, bytes([number]) * 1000)

    async def read(number: int) -> None:
        data = bytes(await h.read(ROOT, ino, opened.fh, number * 1000, 1000))
        assert data in (bytes([number]) * len(data), bytes(len(data)))

    await asyncio.gather(*(write(number) for number in range(100)), *(read(number) for number in range(100)))
    data = bytes(await h.read(ROOT, ino, opened.fh, 0, 200_000))
    assert data == b"".join(bytes([number]) * 1000 for number in range(100))
    await h.release(ROOT, ino, opened.fh)


async def test_a_name_that_another_client_gave_to_another_file_is_looked_up_again(without_trash: Another) -> None:
    """ESTALE makes the kernel walk the path once more; ENOENT would be believed for as long as the name is."""
    here, there = await without_trash(attr_timeout=100.0, entry_timeout=100.0), await without_trash()
    old, _ = await here.handlers.symlink(ROOT, 1, b"link", b"one"), await here.write(b"f", b"old")
    file = (await here.handlers.lookup(ROOT, 1, b"f"))[0]
    new = await there.write(b"new", b"new")
    link, _ = await there.handlers.symlink(ROOT, 1, b"other", b"two")
    await there.handlers.rename(ROOT, 1, b"new", 1, b"f", 0)
    await there.handlers.rename(ROOT, 1, b"other", 1, b"link", 0)
    assert (await here.handlers.lookup(ROOT, 1, b"f"))[0] == file
    await fails(errno.ESTALE, here.handlers.open(ROOT, file, os.O_RDONLY))
    assert (await here.handlers.lookup(ROOT, 1, b"f"))[0] == new
    await fails(errno.ESTALE, here.handlers.readlink(ROOT, old[0]))
    assert (await here.handlers.lookup(ROOT, 1, b"link"))[0] == link


async def test_a_file_that_another_client_removed_is_no_stale_handle_for_who_has_it_open(
    without_trash: Another,
) -> None:
    here, there = await without_trash(attr_timeout=0.0), await without_trash()
    ino = await here.write(b"f", b"old")
    opened = await here.handlers.open(ROOT, ino, os.O_RDONLY)
    await there.handlers.unlink(ROOT, 1, b"f")
    await fails(errno.ENOENT, here.handlers.getattr(ROOT, ino))
    await here.handlers.release(ROOT, ino, opened.fh)


async def test_a_link_that_a_rename_replaces_can_still_be_read(without_trash: Another) -> None:
    h = (await without_trash()).handlers
    old, _ = await h.symlink(ROOT, 1, b"link", b"one")
    await h.symlink(ROOT, 1, b"other", b"two")
    await h.rename(ROOT, 1, b"other", 1, b"link", 0)
    assert await h.readlink(ROOT, old) == b"one"
    assert (await h.getattr(ROOT, old)).nlink == 0
