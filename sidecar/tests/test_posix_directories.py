"""Large directories through mounts: cookies that stay, no entry lost or doubled while this mount and another one make and remove
names. JFS_DIRECTORY_ENTRIES makes them smaller or larger."""

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from jfs.meta.connect import connect
from large_directory import populate
from mount_parts import JFS, Volume, mounted, redis_server, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

COUNT = int(os.environ.get("JFS_DIRECTORY_ENTRIES", "200000"))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
_libc.opendir.argtypes = (ctypes.c_char_p,)
for _name in ("readdir", "telldir", "rewinddir", "closedir"):
    getattr(_libc, _name).argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class Directory:
    """opendir(3) and what goes with it; Python's own listings have no positions."""

    def __init__(self, path: Path) -> None:
        self._at = _libc.opendir(bytes(path))
        assert self._at, path

    def read(self) -> bytes | None:
        """The next name."""
        entry = _libc.readdir(self._at)
        return ctypes.string_at(entry + 19) if entry else None  # struct dirent: ino 8, off 8, reclen 2, type 1, name

    def names(self, limit: int = 1 << 60) -> Iterator[bytes]:
        while limit and (name := self.read()) is not None:
            limit -= 1
            yield name

    def tell(self) -> int:
        return int(_libc.telldir(self._at))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._at, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._at)

    def close(self) -> None:
        _libc.closedir(self._at)


async def fill(url: str, directory: int, count: int) -> None:
    """Files `old-N` in a directory, by the engine: through a mount it would take a minute."""
    store = await connect(url)
    try:
        await populate(store, directory, count)
    finally:
        await store.close()


@pytest.fixture(params=["redis", "sqlite3"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    with contextlib.ExitStack() as stack:
        url = f"sqlite3://{tmp_path}/meta.db"
        if request.param == "redis":
            url = stack.enter_context(redis_server(tmp_path)) + "/1"
        volume = Volume(url, tmp_path / "bucket").format("--trash-days", "0")
        with mounted(volume, tmp_path / "first") as top:
            (top / "d").mkdir()
            asyncio.run(fill(url, (top / "d").stat().st_ino, COUNT))
        yield volume
        run(*JFS, "fsck", volume.url)


def test_a_large_directory_among_changes(volume: Volume, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "mnt") as top, mounted(volume, tmp_path / "other") as other:
        stays = {b"old-%d" % number for number in range(COUNT) if number % 10}
        check_positions(top / "d", stays)
        stop = threading.Event()
        changers = [
            threading.Thread(target=change, args=(place / "d", start, stop)) for place, start in ((top, 0), (other, 10))
        ]
        for changer in changers:
            changer.start()
        try:
            for _ in range(3):
                with contextlib.closing(Directory(top / "d")) as directory:
                    listed = [name for name in directory.names() if not name.startswith(b"new")]
                assert len(listed) == len(set(listed)), "a name was listed twice"
                assert stays <= set(listed), "names that were there all the time are missing"
        finally:
            stop.set()
            for changer in changers:
                changer.join()


def change(place: Path, start: int, stop: threading.Event) -> None:
    """Remove every twentieth old name, and make, move and remove new ones."""
    for number in range(start, COUNT, 20):
        if stop.is_set():
            return
        (place / f"old-{number}").unlink()
        new = place / f"new-{number}"
        new.touch()
        new.rename(place / f"newer-{number}")
        if number % 40:
            (place / f"newer-{number}").unlink()


def check_positions(place: Path, stays: set[bytes]) -> None:
    """telldir and seekdir lead to the same names, backwards and forwards, and rewinddir to all of them once more."""
    with contextlib.closing(Directory(place)) as directory:
        marks: list[tuple[int, list[bytes]]] = []
        seen: list[bytes] = []
        while True:
            position = directory.tell()
            some = list(directory.names(COUNT // 7 + 1))
            if not some:
                break
            marks.append((position, some[:50]))
            seen += some
        assert len(seen) == len(set(seen)) == COUNT + 2
        for position, names in (*reversed(marks), *marks[::2]):
            directory.seek(position)
            assert list(directory.names(len(names))) == names
        (place / "made meanwhile").touch()
        directory.rewind()
        again = list(directory.names())
        assert len(again) == len(set(again)) == COUNT + 3
        assert stays <= set(again)
        assert b"made meanwhile" in again
        (place / "made meanwhile").unlink()
