"""The FUSE protocol's structures, and running handlers without tasks."""

import asyncio
import errno
import os
import struct
from collections.abc import Coroutine
from typing import Any

import pytest
from jfs import eager
from jfs.errors import FsError
from jfs.format.constants import APPEND, DIRECTORY, FILE, IMMUTABLE, SKIP_TRASH
from jfs.fuse import inode_flags, requests
from jfs.fuse.connection import Agreed
from jfs.fuse.kernel import extensions, listing, protocol, session
from jfs.fuse.mounting import MountError
from jfs.fuse.requests import Timeouts
from jfs.meta.model.attr import Attr
from jfs.meta.model.locks import Range
from jfs.vfs.directories import Item, Window

FILE_ATTR = Attr(0, FILE << 12 | 0o4755, 1, 2, 10, 11, -20, 21, 30, 31, 3, 1025, 0x501, 1)
VALID = protocol.Valid.of(Timeouts(1.5, 2.0, 3.0, 0.0))


def request(opcode: int, node: int, body: bytes) -> tuple[memoryview, int]:
    end = protocol.HEADER + len(body)
    head = protocol.IN_HEADER.pack(end, opcode, 7, node, 0, 0, 1, 0, 0)
    buffer = memoryview(bytearray(head + body + b"rubbish behind the request"))
    return buffer, end


def decode(opcode: int, body: bytes, node: int = 5) -> tuple[Any, ...]:
    view, end = request(opcode, node, body)
    return {**protocol.OPERATIONS, **extensions.OPERATIONS}[opcode][1](node, view, end)


def test_header_and_structure_sizes_are_the_kernels() -> None:
    assert protocol.HEADER == 40
    assert len(protocol.entry_out(9, FILE_ATTR, VALID)) == 128
    assert len(protocol.attr_out(9, FILE_ATTR, VALID)) == 104
    assert len(protocol.negative_out((1, 0))) == 128
    assert len(protocol.open_out(requests.Opened(3))) == 16


def test_entry_holds_attributes_and_time_outs() -> None:
    raw = protocol.entry_out(9, FILE_ATTR, VALID)
    nodeid, generation, entry, attr, entry_nsec, attr_nsec = struct.unpack_from("<QQQQII", raw)
    assert (nodeid, generation, entry, attr, entry_nsec, attr_nsec) == (9, 1, 2, 1, 0, 500_000_000)
    ino, size, blocks, atime, mtime, ctime, *rest = struct.unpack_from("<QQQqqqIIIIIIIIII", raw, 40)
    assert (ino, size, blocks, atime, mtime, ctime) == (9, 1025, 3, 10, -20, 30)
    assert rest == [11, 21, 31, 0o104755, 3, 1, 2, 0x501, 0x10000, 0]
    directory = FILE_ATTR._replace(kind_mode=DIRECTORY << 12 | 0o755)
    assert struct.unpack_from("<Q", protocol.entry_out(9, directory, VALID), 16) == (3,)


def test_decoders() -> None:
    assert decode(1, b"name\0") == (5, b"name")
    assert decode(3, struct.pack("<IIQ", 1, 0, 77)) == (5, 77)
    assert decode(3, struct.pack("<IIQ", 0, 0, 77)) == (5, None)
    assert decode(6, b"link\0target\0") == (5, b"link", b"target")
    assert decode(8, struct.pack("<IIII", 0o10644, 0x103, 0, 0) + b"f\0") == (5, b"f", 0o10644, 0x103)
    assert decode(9, struct.pack("<II", 0o755, 0o22) + b"d\0") == (5, b"d", 0o755)
    assert decode(12, struct.pack("<Q", 6) + b"a\0b\0") == (5, b"a", 6, b"b", 0)
    assert decode(45, struct.pack("<QII", 6, 2, 0) + b"a\0b\0") == (5, b"a", 6, b"b", 2)
    assert decode(13, struct.pack("<Q", 9) + b"l\0") == (9, 5, b"l")
    assert decode(35, struct.pack("<IIII", 0x8042, 0o100644, 0, 0) + b"c\0") == (5, b"c", 0o100644, 0x8042)
    assert decode(15, struct.pack("<QQIIQII", 3, 4096, 100, 0, 0, 0, 0)) == (5, 3, 4096, 100)
    for kind, flags, wanted in (
        (0, 1, False),
        (0, os.O_APPEND | 1, True),
        (1, os.O_APPEND | 1, False),
    ):  # 1: page cache
        node, fh, offset, data, append = decode(16, struct.pack("<QQIIQII", 3, 8, 4, kind, 0, flags, 0) + b"data")
        assert (node, fh, offset, bytes(data), append) == (5, 3, 8, b"data", wanted)
    assert decode(21, struct.pack("<II", 3, 1) + b"user.x\0a\0c") == (5, b"user.x", b"a\0c", 1)
    assert decode(22, struct.pack("<II", 64, 0) + b"user.x\0") == (5, b"user.x", 64)


def test_setattr_decodes_times_before_1970() -> None:
    valid = requests.ATIME | requests.MTIME | requests.MODE | requests.SIZE | requests.FH
    body = struct.pack("<IIQQQQQQIIIIIIII", valid, 0, 44, 555, 0, (1 << 64) - 2, 7, 0, 5, 6, 0, 0o100600, 0, 1, 2, 0)
    node, change, fh = decode(4, body)
    assert (node, fh, change.size) == (5, 44, 555)
    assert change.atime == -2_000_000_000 + 5
    assert change.mtime == 7_000_000_006
    assert change.change().mode == 0o600
    assert change.change().uid is None


def columns(items: list[Item | None]) -> Window:
    none = Item(b"", 0, 0, None)
    names = [None if item is None else item.name for item in items]
    found = [item or none for item in items]
    return Window(names, [item.ino for item in found], [item.kind for item in found], [item.attr for item in found])


def test_listing_stops_where_the_buffer_ends_and_cookies_skip_removed_entries() -> None:
    items = [Item(b"a", 2, FILE, FILE_ATTR), None, Item(b"bcdefghij", 3, DIRECTORY, None), Item(b"z", 4, FILE, None)]
    window = columns(items)
    raw, count = listing.plain(window, 10, 32 + 40)
    assert count == 3
    assert struct.unpack_from("<QQII", raw) == (2, 11, 1, 8)
    assert raw[24:25] == b"a"
    assert struct.unpack_from("<QQII", raw, 32) == (3, 13, 9, 4)
    assert len(raw) == 72
    plus, count = listing.plus(window, 10, 1000, VALID)
    assert count == 4
    assert struct.unpack_from("<Q", plus) == (2,)
    assert struct.unpack_from("<Q", plus, 160) == (0,)  # no attributes: the kernel asks itself
    assert struct.unpack_from("<QQII", plus, 160 + 128) == (3, 13, 9, 4)


@pytest.mark.parametrize("name", [b"n", b"12345678", b"x" * 255])
def test_stored_attributes_are_packed_like_decoded_ones(name: bytes) -> None:
    for attr in (FILE_ATTR, FILE_ATTR._replace(kind_mode=DIRECTORY << 12 | 0o755, access_acl=3, default_acl=4)):
        stored = listing.plus(Window([name], [7], [FILE], [attr.pack()]), 4, 1000, VALID)
        assert stored == listing.plus(Window([name], [7], [FILE], [attr]), 4, 1000, VALID)
        entry, record = stored.body[:128], stored.body[128:]
        assert entry == protocol.entry_out(7, attr, VALID)
        kind = 0o4 if attr.kind == DIRECTORY else 0o10
        assert struct.unpack_from("<QQII", record) == (7, 5, len(name), kind)
        assert record[24:].rstrip(b"\0") == name
        assert len(record) % 8 == 0
    damaged = listing.plus(Window([name], [7], [FILE], [b"short"]), 4, 1000, VALID).body
    assert damaged[:128] == bytes(128)
    assert len(damaged) == len(stored.body)


def test_decoders_of_locks_ranges_and_flags() -> None:
    lock = struct.pack("<QQQQIIII", 3, 1 << 63, 5, 9, 1, 77, 1, 0)
    assert decode(31, lock) == (5, 3, 1 << 63, Range(1, 77, 5, 9))
    assert decode(32, lock) == decode(33, lock) == (5, 3, 1 << 63, Range(1, 77, 5, 9), True)
    assert decode(43, struct.pack("<QQQII", 3, 10, 20, 1, 0)) == (5, 3, 1, 10, 20)
    assert decode(46, struct.pack("<QQII", 3, 10, 4, 0)) == (5, 3, 10, 4)
    assert decode(47, struct.pack("<QQQQQQQ", 3, 10, 6, 4, 20, 30, 0)) == (5, 3, 10, 6, 4, 20, 30, 0)
    assert decode(39, struct.pack("<QIIQII", 3, 0, 0x40086602, 0, 4, 0) + b"\x10\0\0\0") == (
        5,
        3,
        0x40086602,
        b"\x10\0\0\0",
        0,
    )
    reply = extensions.OPERATIONS[31][2]
    assert reply(None, (), VALID) == struct.pack("<QQII", 0, 0, 2, 0)
    assert reply(Range(1, 7, 5, 9), (), VALID) == struct.pack("<QQII", 5, 9, 1, 7)


def test_inode_flags_in_all_their_forms() -> None:
    get, put, get_x, put_x = 0x80086601, 0x40046602, 0x801C581F, 0x401C5820
    assert inode_flags.encoded(get, IMMUTABLE | SKIP_TRASH) == struct.pack("<Q", 0x11)
    assert inode_flags.encoded(get_x, APPEND | SKIP_TRASH) == struct.pack("<I24x", 0x10)
    assert inode_flags.decoded(put, struct.pack("<I", 0x21), 64 | IMMUTABLE) == 64 | APPEND | SKIP_TRASH
    assert inode_flags.decoded(put_x, struct.pack("<I24x", 0x08), SKIP_TRASH | APPEND) == SKIP_TRASH | IMMUTABLE
    assert not inode_flags.is_known(0x5401)
    assert inode_flags.reads(get_x)
    assert not inode_flags.reads(put)
    for data, number in ((struct.pack("<I", 4), errno.ENOTSUP), (b"", errno.EINVAL)):
        with pytest.raises(FsError, match=r"E(NOTSUP|OPNOTSUPP|INVAL)") as raised:
            inode_flags.decoded(put, data, 0)
        assert raised.value.errno == number
    with pytest.raises(FsError, match=r"(ENOTSUP|EOPNOTSUPP)"):
        inode_flags.decoded(put_x, struct.pack("<IIIII8x", 0, 0, 0, 9, 0), 0)


def test_init_agrees_on_what_both_sides_can() -> None:
    offered = struct.pack("<IIII", 7, 45, 131072, 0xFFFFFFFF)
    reply, agreed = session.answer(1, offered, 1 << 20, locks=True)
    assert agreed.minor == 38
    assert agreed.max_write == 1 << 20
    wanted = session.WANTED | session.INIT_EXT
    assert agreed.flags == wanted | session.POSIX_LOCKS | session.FLOCK_LOCKS
    assert session.answer(1, offered, 1 << 20, locks=False)[1].flags == wanted
    assert not agreed.resends
    offered = struct.pack("<IIIII44x", 7, 45, 131072, 0xFFFFFFFF, 1 << 7)
    assert session.answer(1, offered, 1 << 20, locks=False)[1].resends
    assert session.answer(1, offered, 1 << 20, locks=False, resend=False)[1].flags == session.WANTED
    assert Agreed.of(agreed.record()) == agreed
    assert len(reply) == 16 + 64
    _, agreed = session.answer(1, struct.pack("<IIII", 7, 31, 131072, 0), 1 << 20, locks=False)
    assert (agreed.minor, agreed.flags, agreed.max_write) == (31, 0, 131072)
    with pytest.raises(MountError, match=r"FUSE 7\.19"):
        session.answer(1, struct.pack("<IIII", 7, 19, 131072, 0), 1 << 20, locks=False)


class Started:
    """A coroutine started from a callback of the loop, outside any task, as the host does."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = self.loop.create_future()
        self.at_once: asyncio.Future[bool] = self.loop.create_future()
        self.run = eager.Run(coroutine, self.loop, self.finish)
        self.loop.call_soon(lambda: self.at_once.set_result(self.run.start()))

    def finish(self, run: eager.Run, result: Any, error: BaseException | None) -> None:
        assert run is self.run
        self.outcome.set_result((result, error))

    async def result(self) -> Any:
        result, error = await self.outcome
        assert self.run.done()
        if error is not None:
            raise error
        return result


async def test_a_starter_starts_one_after_another() -> None:
    loop = asyncio.get_running_loop()
    starter = eager.Starter(loop)
    gate = asyncio.Event()
    ended: asyncio.Queue[tuple[eager.Run, Any, BaseException | None]] = asyncio.Queue()

    async def handler(number: int, *, waits: bool) -> int:
        async with asyncio.timeout(20 if waits else None):
            if waits:
                await gate.wait()
        if not number:
            raise FsError(errno.ENOENT)
        return number

    outcomes: list[Any] = []
    runs: list[eager.Run] = []

    def start() -> None:
        for number in range(3):
            assert starter.start(handler(number, waits=False)) is None
            outcomes.append(starter.error or starter.result)
            run = starter.start(handler(number, waits=True), pid=number)
            assert run is not None
            run.finish = lambda *outcome: ended.put_nowait(outcome)
            runs.append(run)
        assert starter.start(handler(7, waits=False)) is None
        assert starter.error is None

    loop.call_soon(start)
    await asyncio.sleep(0)
    assert isinstance(outcomes[0], FsError)
    assert outcomes[1:] == [1, 2]
    assert [run.pid for run in runs] == [0, 1, 2]
    assert runs[1].cancel()
    gate.set()
    found = {run.pid: (result, error) for run, result, error in [await ended.get() for _ in range(3)]}
    assert isinstance(found[0][1], FsError)
    assert isinstance(found[1][1], asyncio.CancelledError)
    assert found[2] == (2, None)
    assert all(run.ended for run in runs)


async def test_a_handler_that_does_not_wait_ends_at_once() -> None:
    async def handler() -> int:
        return 42

    started = Started(handler())
    assert await started.at_once
    assert await started.result() == 42


async def test_a_handler_that_fails_at_once() -> None:
    async def handler() -> None:
        raise FsError(errno.ENOENT)

    started = Started(handler())
    assert await started.at_once
    with pytest.raises(FsError):
        await started.result()


async def test_a_handler_that_waits_goes_on_when_it_may() -> None:
    first: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    second: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def handler() -> int:
        value = await first
        await asyncio.sleep(0)
        return value + await second

    started = Started(handler())
    assert not await started.at_once
    first.set_result(1)
    await asyncio.sleep(0)
    second.set_result(2)
    assert await started.result() == 3


async def test_errors_of_what_is_awaited_reach_the_handler() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handler() -> str:
        try:
            await future
        except ValueError:
            await asyncio.sleep(0)
            return "caught"
        return "missed"

    started = Started(handler())
    await started.at_once
    future.set_exception(ValueError("x"))
    assert await started.result() == "caught"


async def test_cancelling_interrupts_where_it_waits() -> None:
    cleaned: list[str] = []

    async def handler() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            cleaned.append("yes")

    started = Started(handler())
    await started.at_once
    assert started.run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await started.result()
    assert cleaned == ["yes"]
    assert not started.run.cancel()


async def test_cancelling_between_steps_is_not_lost() -> None:
    async def handler() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    started = Started(handler())
    await started.at_once
    started.run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await started.result()


async def test_tasks_and_futures_can_be_awaited() -> None:
    async def other() -> int:
        await asyncio.sleep(0)
        return 5

    async def handler() -> list[int]:
        return [*await asyncio.gather(other(), other()), await asyncio.create_task(other())]

    assert await Started(handler()).result() == [5, 5, 5]


async def test_locks_and_events_work() -> None:
    lock, event = asyncio.Lock(), asyncio.Event()

    async def handler() -> str:
        async with lock:
            await event.wait()
            return "went on"

    first, second = Started(handler()), Started(handler())
    await asyncio.sleep(0)
    event.set()
    assert await first.result() == await second.result() == "went on"


async def test_a_timeout_opened_before_the_first_wait_works() -> None:
    async def handler() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            await asyncio.sleep(0)
            return "timed out"
        return "never"

    started = Started(handler())
    assert await started.result() == "timed out"
    assert started.run.cancelling() == 0


async def test_a_task_group_opened_before_the_first_wait_works() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("inner")

    async def handler() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await asyncio.get_running_loop().create_future()

    with pytest.raises(ExceptionGroup):
        await Started(handler()).result()


def test_forgotten_inodes() -> None:
    view, _ = request(protocol.FORGET, 9, struct.pack("<Q", 3))
    assert protocol.forgotten(view, protocol.FORGET) == [9]
    view, _ = request(protocol.BATCH_FORGET, 0, struct.pack("<IIQQQQ", 2, 0, 9, 3, 11, 1))
    assert protocol.forgotten(view, protocol.BATCH_FORGET) == [9, 11]
