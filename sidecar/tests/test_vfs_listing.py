"""Snapshots of directories: reading ahead, interruptions, failures; replies packed ahead of their request."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jfs.errors import StoreUnavailable
from jfs.format.constants import DIRECTORY, FILE
from jfs.fuse.kernel import listing, planes
from jfs.fuse.kernel.protocol import Valid
from jfs.fuse.requests import Timeouts
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.store.base import DirectoryPage
from jfs.meta.volume import SUPERUSER, Caller
from jfs.vfs.directories import Directories, DirectoryHandle, Item, Window

ATTR = Attr(0, FILE << 12 | 0o644, 1, 2, 10, 11, 20, 21, 30, 31, 1, 5, 0, 1)
VALID = Valid.of(Timeouts())
PAGE = 200


class Page(NamedTuple):
    names: list[bytes]
    entries: list[Entry]
    attrs: list[Attr | None] | None
    raw_attrs: list[bytes | None]
    raw_entries: None = None


class Directory:
    """A directory of three pages; *gate* holds the later ones back, *broken* makes the second one fail."""

    def __init__(self, *, broken: bool = False) -> None:
        self.gate = asyncio.Event()
        self.asked = 0
        self.broken = broken

    async def pages(self) -> AsyncIterator[DirectoryPage]:
        for number in range(3):
            self.asked += 1
            if number:
                await self.gate.wait()
                if self.broken:
                    raise StoreUnavailable("the database is away")
            inos = range(number * PAGE, (number + 1) * PAGE)
            yield Page([b"%03d" % i for i in inos], [Entry(FILE, 100 + i) for i in inos], None, [ATTR.pack()] * PAGE)


def dots() -> list[Item]:
    return [Item(b".", 1, DIRECTORY, None)]


async def opened(directory: Directory, directories: Directories) -> DirectoryHandle:
    handle = directories.open(9, 1, dots)
    await handle.start(directory.pages())
    await handle.fill(0, 50)
    return handle


async def test_the_next_page_is_read_before_it_is_asked_for() -> None:
    directory = Directory()
    handle = await opened(directory, Directories())
    assert handle.known(PAGE)
    assert not handle.known(PAGE + 1)
    await asyncio.sleep(0)
    assert directory.asked == 2
    directory.gate.set()
    while not handle.known(3 * PAGE):
        await asyncio.sleep(0)
        handle.take_ahead(10 * PAGE)
    names = handle.window(0, 10 * PAGE, freshness=9).names
    assert names == [b".", *(b"%03d" % i for i in range(3 * PAGE))]
    await handle.close()


async def test_an_interrupted_request_does_not_end_the_listing() -> None:
    directory = Directory()
    handle = await opened(directory, Directories())
    waiting = asyncio.create_task(handle.fill(PAGE + 1, 50))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    directory.gate.set()
    await handle.fill(PAGE + 1, 50)
    assert handle.window(PAGE + 1, 1, freshness=9).names == [b"200"]
    await handle.close()


async def test_a_failure_is_not_the_end_of_the_directory() -> None:
    directory = Directory(broken=True)
    handle = await opened(directory, Directories())
    directory.gate.set()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await handle.fill(PAGE + 1, 50)
    await handle.start(Directory().pages())
    await handle.fill(0, 50)
    assert handle.known(PAGE)
    await handle.close()


async def test_closing_ends_what_is_read_ahead() -> None:
    directory = Directory()
    handle = await opened(directory, Directories())
    await asyncio.sleep(0)
    await handle.close()
    assert len(asyncio.all_tasks()) == 1


async def test_attributes_of_directories_changed_meanwhile_and_of_suspects_are_left_out() -> None:
    directories = Directories()
    handle = await opened(Directory(), directories)
    directories.suspect((103,))
    directories.added(105, b"below")
    directories.removed(1, b"006")
    shown = {item.name: item.attr for item in directories.current(handle, handle.window(1, 10, freshness=9)) if item}
    assert shown[b"004"] == ATTR
    assert shown[b"003"] is None
    assert shown[b"005"] is None
    assert b"006" not in shown
    await handle.close()


async def test_old_attributes_are_left_out() -> None:
    handle = await opened(Directory(), Directories())
    assert handle.window(1, 1, freshness=9).attrs == [ATTR.pack()]
    assert handle.window(1, 1, freshness=-1).attrs == [None]
    await handle.close()


class Source:
    """Handlers that list from memory and count what they are asked."""

    def __init__(self) -> None:
        self.directories = Directories()
        self.asked: list[int] = []
        self.given: list[int] = []
        self.inos = range(100, 120)

    def _window(self, cookie: int) -> Window:
        inos = self.inos[cookie:]
        return Window([b"%03d" % i for i in inos], inos, [FILE] * len(inos), [ATTR.pack()] * len(inos))

    async def readdir(self, caller: Caller, ino: int, fh: int, cookie: int, size: int, plus: bool) -> Window:
        self.asked.append(cookie)
        return self._window(cookie)

    def listed(self, fh: int, cookie: int, size: int, plus: bool) -> Window | None:
        return self._window(cookie)

    def told(self, window: Window, count: int) -> None:
        self.given += window.inos[:count]

    async def releasedir(self, caller: Caller, ino: int, fh: int) -> None:
        self.directories.close(fh)


@pytest.mark.parametrize("plus", [True, False])
async def test_the_next_reply_is_packed_ahead_and_dropped_when_something_changes(plus: bool) -> None:
    source = Source()
    now = [100.0]
    listings = listing.Listings(source, VALID, lambda: now[0])
    size = 5 * (160 if plus else 32)

    async def read(cookie: int) -> bytes:
        reply = await listings.readdir(SUPERUSER, 1, 9, cookie, size, plus)
        await asyncio.sleep(0)
        return reply

    def wanted(cookie: int) -> bytes:
        window = source._window(cookie)
        return listing.plus(window, cookie, size, VALID).body if plus else listing.plain(window, cookie, size).body

    assert [await read(0), await read(5)] == [wanted(0), wanted(5)]
    assert source.asked == [0]
    assert source.given == (list(range(100, 110)) if plus else [])
    source.directories.suspect((111,))
    assert await read(10) == wanted(10)
    assert source.asked == [0, 10]
    now[0] += 1.0
    assert await read(15) == wanted(15)
    assert source.asked == [0, 10, 15]
    assert await read(20) == b""
    await listings.releasedir(SUPERUSER, 1, 9)


NUMBERS = st.integers(0, (1 << 32) - 1)
TIMES = st.integers(-(1 << 40), 1 << 40)
ATTRS = st.builds(
    Attr,
    st.just(0),
    st.integers(0, 0xFFFF),
    NUMBERS,
    NUMBERS,
    TIMES,
    NUMBERS,
    TIMES,
    NUMBERS,
    TIMES,
    NUMBERS,
    NUMBERS,
    st.integers(0, 1 << 57),
    NUMBERS,
    st.integers(0, 1 << 60),
    access_acl=st.just(0),
    default_acl=st.just(0),
    tier=st.just(0),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=255), st.integers(1, 1 << 62), ATTRS), min_size=1, max_size=9),
    st.integers(0, 1 << 40),
    st.integers(0, 40_000),
    st.floats(0, 9),
)
def test_records_made_at_once_are_those_made_one_by_one(
    found: list[tuple[bytes, int, Attr]], cookie: int, size: int, seconds: float
) -> None:
    found = found * (planes.WORTH // len(found) + 1)
    valid = Valid.of(Timeouts(1.5, seconds, 2.5, 0.0))
    names, inos, attrs = [f[0] for f in found], [f[1] for f in found], [f[2] for f in found]
    at_once = listing.plus(
        Window(names, inos, [FILE] * len(found), [attr.pack() for attr in attrs]), cookie, size, valid
    )
    one_by_one = listing.plus(Window(names, inos, [FILE] * len(found), attrs), cookie, size, valid)
    assert at_once == one_by_one


def test_windows_with_gaps_are_packed_one_by_one() -> None:
    count = planes.WORTH
    names: list[bytes | None] = [b"n%03d" % i for i in range(count)]
    stored: list[Attr | bytes | None] = [ATTR.pack()] * count
    names[3], stored[5], stored[7] = None, None, ATTR._replace(access_acl=1, default_acl=2).pack()
    decoded: list[Attr | bytes | None] = [ATTR] * count
    decoded[5] = None
    inos, kinds = range(1, count + 1), [FILE] * count
    packed = listing.plus(Window(names, inos, kinds, stored), 0, 1 << 20, VALID)
    assert packed == listing.plus(Window(names, inos, kinds, decoded), 0, 1 << 20, VALID)
    assert packed.taken == count
