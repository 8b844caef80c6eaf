"""The automatic backup of a volume's metadata: a dump in `meta/` of its own object storage (format §9.3).

One client of the volume makes it per period, whoever comes first: the root's attribute `lastBackup` is compared and set in one
transaction. The dump is made by a child of low priority (`main`), so that applications do not wait for it; the child gets address
and password on its standard input and writes into a file without a name, which goes with it whatever happens. Old backups are thinned out.
A backup that fails is logged and tried again in the next period. One task per mount.
"""

import asyncio
import json
import logging
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import IO, Final

from jfs.errors import JfsError, VolumeError
from jfs.format.constants import ROOT
from jfs.meta.model.keys import XattrKey
from jfs.meta.operations.rules import SECOND
from jfs.meta.operations.xattrs import set_xattr
from jfs.meta.store.base import Tx
from jfs.meta.volume import Meta
from jfs.metrics import Registry
from jfs.object.base import ObjectStorage

log = logging.getLogger("jfs.mount")

_LAST: Final = XattrKey(ROOT, b"lastBackup")
_MANY: Final = 1_000_000  # inodes that an hourly backup takes too long for
_HOUR: Final = 3600.0
_FOLDER: Final = "meta/"
_NAME: Final = "dump-%Y-%m-%d-%H%M%S.json.gz"
_LENGTH: Final = len("dump-2006-01-02-150405.json.gz")


class Backups:
    """The backups of a mount. *source* is what the child is told (`main`), *storage* gives the volume's objects, *folder* is where the
    dump is kept meanwhile (None: the system's place for temporary files)."""

    def __init__(
        self,
        meta: Meta,
        storage: Callable[[], ObjectStorage],
        source: dict[str, str | bool],
        interval: float,
        *,
        folder: str | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._meta = meta
        self._storage = storage
        self._source = json.dumps(source).encode()
        self._interval = interval
        self._folder = folder
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._last = 0.0
        self._took = 0.0

    def register(self, registry: Registry) -> None:
        """The real client's metrics (format §8.4)."""
        registry.gauge(
            "last_successful_backup", lambda: self._last, "Unix seconds of the last metadata backup of this client."
        )
        registry.gauge("last_backup_duration", lambda: self._took, "Seconds that it took.")

    def start(self) -> None:
        """Look every tenth of the interval whether it is time (format §9.3)."""
        self._task = asyncio.create_task(self._run_on(), name="metadata backup")

    async def close(self) -> None:
        """Make no more; one under way is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run_on(self) -> None:
        while True:
            await asyncio.sleep(self._interval / 10)
            try:
                await self.turn()
            except (JfsError, OSError) as error:
                log.warning("the metadata were not backed up, the next try is in %.0f s: %s", self._interval, error)

    async def turn(self) -> bool:
        """Make a backup if it is time and nobody else does; whether one was made. JfsError, OSError."""
        if not await self._elected():
            return False
        _, _, inodes, _ = await self._meta.statfs()
        if inodes > _MANY and self._interval <= _HOUR:
            log.warning("no metadata backup of %d inodes each hour: choose a longer --backup-meta", inodes)
            return False
        import tempfile  # a mount that makes no backup need not carry it

        began, now = time.monotonic(), datetime.fromtimestamp(self._clock() / SECOND, UTC)
        storage = self._storage()
        with tempfile.TemporaryFile(dir=self._folder, prefix="jfs-backup-") as file:
            await self._dump(file)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                view = memoryview(content)
                try:
                    await storage.put(_FOLDER + now.strftime(_NAME), view)
                finally:
                    view.release()
        self._last, self._took = now.timestamp(), time.monotonic() - began
        log.info("the metadata were backed up in %.1f s", self._took)
        await self._thin_out(storage, now)
        return True

    async def _thin_out(self, storage: ObjectStorage, now: datetime) -> None:
        try:
            names = [info.key.removeprefix(_FOLDER) async for info in storage.list(_FOLDER)]
            for name in outdated(names, now):
                await storage.delete(_FOLDER + name)
        except JfsError as error:
            log.warning("old metadata backups were not removed, the next one does it: %s", error)

    async def _elected(self) -> bool:
        now = self._clock()
        text = datetime.fromtimestamp(now // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()

        async def operation(tx: Tx) -> bool:
            (last,) = await tx.get(_LAST)
            if last is not None and now / SECOND - _seconds(last) < self._interval:
                return False
            await set_xattr(tx, ROOT, _LAST.name, text, 0, now)
            return True

        return await self._meta.store.run(operation)

    async def _dump(self, file: IO[bytes]) -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE
        )
        try:
            _, said = await child.communicate(self._source)
        except BaseException:
            if child.returncode is None:
                child.kill()
                await child.wait()
            raise
        if child.returncode:
            lines = said.decode(errors="replace").strip().splitlines()
            raise VolumeError(lines[-1] if lines else f"the dump ended with status {child.returncode}")


def _seconds(text: bytes) -> float:
    """Unix seconds of RFC 3339 text; 0 of anything else, so that the next backup writes it anew."""
    try:
        return datetime.fromisoformat(text.decode()).timestamp()
    except ValueError:
        return 0.0


def outdated(names: Iterable[str], now: datetime) -> list[str]:
    """The backups to remove: all of the last two days are kept, of older ones the earliest of each day up to two weeks, of each
    week up to two months, of each 30 days up to two years. Names of another form are nobody's business."""
    dated = sorted((made, name) for name in names if (made := _made(name)) is not None)
    kept: set[str] = set()
    for younger, older in _periods(now):
        first = next((name for made, name in dated if older <= made < younger), None)
        if first is not None:
            kept.add(first)
    recent = now - timedelta(days=2)
    return [name for made, name in dated if made < recent and name not in kept]


def _periods(now: datetime) -> Iterator[tuple[datetime, datetime]]:
    days = 2
    while days < 730:
        step = 1 if days < 14 else 7 if days < 60 else 30
        yield now - timedelta(days=days), now - timedelta(days=days + step)
        days += step


def _made(name: str) -> datetime | None:
    if len(name) != _LENGTH:
        return None
    try:
        return datetime.strptime(name, _NAME).replace(tzinfo=UTC)
    except ValueError:
        return None


async def _write(source: dict[str, str | bool], out: IO[bytes]) -> None:
    import gzip

    from jfs.dump.writer import Dump
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting

    store = await connect(str(source["url"]), password=str(source["password"]))
    try:
        dump = Dump(store, await load_setting(store), skip_trash=bool(source["skip_trash"]))
        with gzip.GzipFile(fileobj=out, mode="wb", filename="", mtime=0, compresslevel=6) as file:
            async for piece in dump.encoded():
                file.write(piece)
    finally:
        await store.close()


def main() -> int:
    """The child: a JSON object with url, password and skip_trash on standard input, the compressed dump on standard output."""
    os.nice(19)
    try:
        asyncio.run(_write(json.loads(sys.stdin.buffer.read()), sys.stdout.buffer))
        sys.stdout.buffer.flush()
    except (JfsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
