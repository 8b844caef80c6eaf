"""The requests of `.control` through the handlers: frames, progress, rights, and what an answer holds."""

import asyncio
import errno
import itertools
import json
import os
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from jfs.format.constants import CONTROL_INO
from jfs.format.setting import new_setting
from jfs.meta.connect import connect
from jfs.meta.operations.access import Caller
from jfs.meta.operations.attributes import AttrChange
from jfs.meta.volume import format_volume
from jfs.object.memory import MemoryStorage
from jfs.vfs.control import ControlHandle, Progress, data
from test_vfs_handlers import ROOT, Rig, open_rig

USER = Caller(1000, 1000, 0)
NUMBERS = itertools.count()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    url = f"memory://commands-{next(NUMBERS)}"
    store = await connect(url)
    setting = new_setting("vol", "b3a1cd7e-70c4-4b1a-8a3c-5f0f3a9f8a11", storage="mem", bucket="x", block_size=64 << 10)
    await format_volume(store, setting.replaced(TrashDays=0), force=False, no_update=False, now=time.time_ns())
    made = await open_rig(url, MemoryStorage(url))
    yield made
    await made.close()
    await store.close()


async def ask(rig: Rig, command: int, body: bytes, caller: Caller = ROOT) -> bytes:
    """The whole reply: progress, then what ends it."""
    h = rig.handlers
    opened = await h.open(caller, CONTROL_INO, os.O_RDWR)
    request = struct.pack(">II", command, len(body)) + body
    await h.write(caller, CONTROL_INO, opened.fh, 0, request[:5])
    await h.write(caller, CONTROL_INO, opened.fh, 5, request[5:])
    reply = b""
    while True:
        piece = bytes(await h.read(caller, CONTROL_INO, opened.fh, len(reply), 50))
        reply += piece
        if not piece:
            await h.release(caller, CONTROL_INO, opened.fh)
            return reply


def named(parent: int, name: bytes) -> bytes:
    return struct.pack(">QB", parent, len(name)) + name


def clone_body(source: int, parent: int, name: bytes, *, mode: int = 0, umask: int = 0o22) -> bytes:
    return struct.pack(">QQQB", source, 1, parent, len(name)) + name + struct.pack(">HBB", umask, mode, 4)


def parsed(reply: bytes) -> tuple[tuple[int, int] | None, Any]:
    """The last progress mark, and the JSON or the errno at the end."""
    last = None
    while reply and reply[0] == 0xFE:
        last = struct.unpack_from(">QQ", reply, 1)
        reply = reply[17:]
    if reply[0] == 0xFF:
        (size,) = struct.unpack_from(">I", reply, 1)
        assert len(reply) == 5 + size
        return last, json.loads(reply[5:])
    assert len(reply) == 1
    return last, reply[0]


@pytest.fixture
async def top(rig: Rig) -> int:
    """The directory `d` with files f (5000 bytes), h (empty), a link s, and the directory e with g (100 bytes)."""
    ino, _ = await rig.handlers.mkdir(ROOT, 1, b"d", 0o755)
    below, _ = await rig.handlers.mkdir(ROOT, ino, b"e", 0o755)
    for parent, name, size in ((ino, b"f", 5000), (ino, b"h", 0), (below, b"g", 100)):
        file, _, opened = await rig.handlers.create(ROOT, parent, name, 0o644, os.O_WRONLY | os.O_CREAT)
        await rig.handlers.write(ROOT, file, opened.fh, 0, b"x" * size)
        await rig.handlers.release(ROOT, file, opened.fh)
    await rig.handlers.symlink(ROOT, ino, b"s", b"f")
    return ino


async def test_unknown_and_torn_requests_end_with_einval(rig: Rig, top: int) -> None:
    for command, body in (
        (1099, b"xx"),
        (1000, b"x" * 12),
        (1001, b"x" * 12),
        (1002, b""),
        (1002, struct.pack(">QB", 1, 20) + b"d"),
        (1003, b"1"),
        (1004, b""),
        (1005, b"123"),
        (1006, struct.pack(">QQQB", top, 1, 1, 3) + b"abc"),
        (1007, b""),
        (1008, b"1234567"),
    ):
        assert await ask(rig, command, body) == bytes([errno.EINVAL]), command
    h = rig.handlers
    opened = await h.open(ROOT, CONTROL_INO, os.O_RDWR)
    assert bytes(await h.read(ROOT, CONTROL_INO, opened.fh, 0, 10)) == b""
    await h.release(ROOT, CONTROL_INO, opened.fh)


async def test_rmr_removes_and_counts(rig: Rig, top: int) -> None:
    assert parsed(await ask(rig, 1002, named(1, b"d") + bytes([0, 4]))) == ((6, 0), 0)
    assert b"d" not in await rig.names()
    assert parsed(await ask(rig, 1002, named(1, b"d"))) == (None, errno.ENOENT)


async def test_rmr_has_the_callers_rights(rig: Rig, top: int) -> None:
    assert parsed(await ask(rig, 1002, named(1, b"d") + bytes([1, 4]), USER)) == (None, errno.EPERM)
    await rig.meta.setattr(ROOT, 1, AttrChange(mode=0o777))
    assert parsed(await ask(rig, 1002, named(1, b"d"), USER))[1] == errno.EACCES
    assert (await rig.names(top)).keys() >= {b"e", b"f", b"h", b"s"}
    await rig.meta.setattr(ROOT, top, AttrChange(mode=0o700))
    assert parsed(await ask(rig, 1002, named(1, b"d"), USER))[1] == errno.EACCES


async def test_clone_makes_a_tree_of_the_callers(rig: Rig, top: int) -> None:
    await rig.meta.setattr(ROOT, 1, AttrChange(mode=0o777))
    assert parsed(await ask(rig, 1006, clone_body(top, 1, b"c", umask=0o77), USER)) == ((6, 6), 0)
    copy = (await rig.names())[b"c"]
    attr = await rig.handlers.getattr(ROOT, copy)
    assert (attr.uid, attr.gid, attr.mode) == (1000, 1000, 0o700)
    assert (await rig.names(copy)).keys() >= {b"e", b"f", b"h", b"s"}
    assert parsed(await ask(rig, 1006, clone_body(top, 1, b"c"))) == (None, errno.EEXIST)
    assert parsed(await ask(rig, 1006, clone_body(99, 1, b"x"))) == (None, errno.ENOENT)
    assert parsed(await ask(rig, 1006, clone_body(CONTROL_INO, 1, b"x"))) == (None, errno.EPERM)
    kept = parsed(await ask(rig, 1006, clone_body(top, 1, b"kept", mode=2), USER))
    assert kept == ((6, 6), 0)
    assert (await rig.handlers.getattr(ROOT, (await rig.names())[b"kept"])).uid == 0


async def test_clone_has_what_was_just_written(rig: Rig, top: int) -> None:
    h = rig.handlers
    ino, _, opened = await h.create(ROOT, top, b"new", 0o644, os.O_WRONLY | os.O_CREAT)
    await h.write(ROOT, ino, opened.fh, 0, b"not flushed yet")
    assert parsed(await ask(rig, 1006, clone_body(ino, 1, b"c")))[1] == 0
    copy = (await rig.names())[b"c"]
    reading = await h.open(ROOT, copy, os.O_RDONLY)
    assert bytes(await h.read(ROOT, copy, reading.fh, 0, 100)) == b"not flushed yet"
    await h.release(ROOT, copy, reading.fh)
    await h.release(ROOT, ino, opened.fh)


async def test_summary(rig: Rig, top: int) -> None:
    found = await rig.names(top)
    e, f, h, s = (found[name] for name in (b"e", b"f", b"h", b"s"))
    g = (await rig.names(e))[b"g"]

    def node(ino: int, path: str, kind: int, size: int, files: int, dirs: int, **more: Any) -> dict[str, Any]:
        return {"Inode": ino, "Path": path, "Type": kind, "Size": size, "Files": files, "Dirs": dirs, **more}

    below = node(e, "e", 2, 8192, 1, 1)
    files = [node(f, "f", 1, 8192, 1, 0), node(h, "h", 1, 4096, 1, 0), node(s, "s", 3, 4096, 1, 0)]
    with_g = {**below, "Children": [node(g, "e/g", 1, 4096, 1, 0)]}
    others = node(0, "...", 1, 16384, 3, 0)
    for strict in (0, 1):
        for depth, entries, children in (
            (0, 10, None),
            (1, 10, [below, *files]),
            (3, 10, [with_g, *files]),
            (3, 1, [with_g, others]),
        ):
            progress, answer = parsed(await ask(rig, 1007, struct.pack(">QBBB", top, depth, entries, strict)))
            assert progress == (6, 28672)
            more = {} if children is None else {"Children": children}
            assert answer == {"Errno": 0, "Tree": node(top, "", 2, 28672, 4, 2, **more)}, (depth, entries, strict)
    assert parsed(await ask(rig, 1007, struct.pack(">Q", top)))[1]["Tree"]["Children"][0] == with_g
    assert parsed(await ask(rig, 1007, struct.pack(">QB", f, 3)))[1]["Tree"] == node(f, "", 2, 8192, 1, 0)
    assert parsed(await ask(rig, 1007, struct.pack(">Q", 99)))[1]["Errno"] == errno.ENOENT
    await rig.meta.setattr(ROOT, e, AttrChange(mode=0o700))
    assert parsed(await ask(rig, 1007, struct.pack(">Q", top), USER))[1]["Errno"] == errno.EACCES


async def test_legacy_info_is_text(rig: Rig, top: int) -> None:
    f = (await rig.names(top))[b"f"]
    reply = await ask(rig, 1003, struct.pack(">QB", f, 0))
    (size,) = struct.unpack_from(">I", reply)
    assert len(reply) == 4 + size
    assert (
        reply[4:]
        .decode()
        .startswith(
            f"  inode: {f}\n  files: 1\n   dirs: 0\n length: 4.88 KiB (5000 Bytes)\n   size: 8.00 KiB (8192 Bytes)\n   path: /d/f\n"
        )
    )
    assert b"objects:\n\t0:\tvol/chunks/" in reply
    assert b" chunks:\n\t0:\t" in await ask(rig, 1003, struct.pack(">QBB", f, 0, 1))
    assert b"ENOENT" in await ask(rig, 1003, struct.pack(">QB", 99, 0))


def fill(action: int, *paths: bytes) -> bytes:
    joined = b"\n".join(paths)
    return struct.pack(">I", len(joined)) + joined + struct.pack(">HBB", 4, 0, action)


async def test_what_is_cached_is_told_and_dropped(rig: Rig, top: int) -> None:
    f = (await rig.names(top))[b"f"]
    missing = {"FileCount": 3, "SliceCount": 2, "TotalBytes": 5100, "MissBytes": 5100, "Locations": {}}
    assert parsed(await ask(rig, 1004, fill(2, b"/d"))) == ((3, 5100), missing)
    opened = await rig.handlers.open(ROOT, f, os.O_RDONLY)
    await rig.handlers.read(ROOT, f, opened.fh, 0, 100)
    held = parsed(await ask(rig, 1004, fill(2, b"/d/s", b"/d/e/g")))[1]
    assert (held["FileCount"], held["MissBytes"], held["Locations"]) == (2, 100, {"memory": 5000})
    assert parsed(await ask(rig, 1004, fill(1, b"/d")))[1]["FileCount"] == 3
    assert parsed(await ask(rig, 1004, fill(2, b"/d")))[1] == missing
    await rig.handlers.release(ROOT, f, opened.fh)
    assert parsed(await ask(rig, 1004, fill(2, b"/nowhere")))[1]["FileCount"] == 0
    assert parsed(await ask(rig, 1004, fill(0, b"/d"))) == (None, errno.ENOTSUP)
    assert parsed(await ask(rig, 1004, fill(9, b"/d"))) == (None, errno.EINVAL)


async def test_progress_comes_while_the_request_runs_and_closing_ends_it() -> None:
    ended = asyncio.Event()

    async def answer(command: int, body: bytes, caller: Caller, progress: Progress) -> bytes:
        assert caller.checked
        try:
            progress(3, 7)
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b"\0"

    handle = ControlHandle(answer)
    await handle.write(struct.pack(">II", 1, 0), USER)
    assert await handle.read(0, 100) == struct.pack(">BQQ", 0xFE, 3, 7)
    with pytest.raises(Exception, match="EBUSY"):
        await handle.write(struct.pack(">II", 1, 0), USER)
    handle.close()
    await asyncio.wait_for(ended.wait(), 10)


async def test_one_handle_takes_requests_one_after_the_other() -> None:
    async def answer(command: int, body: bytes, caller: Caller, progress: Progress) -> bytes:
        if command == 13:
            raise ValueError("a fault of ours")
        return data(body)

    handle = ControlHandle(answer)
    for body in (b"{}", b"[1]"):
        await handle.write(struct.pack(">II", 1, len(body)) + body, USER)
        assert await handle.read(0, 100) == data(body)
        assert await handle.read(0, 100) == b""
    await handle.write(struct.pack(">II", 13, 0), USER)
    assert await handle.read(0, 100) == bytes([errno.EIO])
    with pytest.raises(Exception, match="EINVAL"):
        await handle.write(struct.pack(">II", 1, 1 << 31), USER)
    handle.close()
