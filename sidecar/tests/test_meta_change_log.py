"""The change log: entries that are written with the commit they tell of, and forgotten by age and number."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import store_engines as engines
from jfs.errors import FsError
from jfs.format.constants import ROOT
from jfs.meta.engines.memory.store import MemoryStore
from jfs.meta.model.keys import CounterKey, SettingKey
from jfs.meta.operations import journal
from jfs.meta.operations.journal import escaped
from jfs.meta.store.base import Store, Tx
from jfs.meta.store.change_log import SECOND, ChangeLog, LogEntry
from jfs.meta.volume import SUPERUSER, Meta
from jfs.meta.volume.following import follow
from jfs.meta.volume.session import keep_change_log, load_setting
from meta_volumes import Volume, volume

SILENT = "etcd"  # where the real client keeps no log either
LOGGING = [each for each in engines.ALL if SILENT not in (each, *getattr(each, "values", ()))]

logged = pytest.mark.parametrize("engine", LOGGING)


@asynccontextmanager
async def logging(engine: str, folder: Path, **members: object) -> AsyncIterator[tuple[Volume, Meta]]:
    """A volume with a change log, and a client of it."""
    async with volume(engine, folder) as made:
        store = await made.store()
        setting = (await load_setting(store)).replaced(ChangeLog=True, **members)

        async def write(tx: Tx) -> None:
            tx.put(SettingKey(), setting.encode())

        await store.run(write)
        yield made, await made.client()


async def texts(store: Store) -> list[str]:
    """The entries without times and transactions."""
    return [line.decode().split("|")[1] for line in await store.oldest_logged(10_000)]


@logged
async def test_entries_come_with_their_commits(engine: str, tmp_path: Path) -> None:
    async with logging(engine, tmp_path) as (made, meta):
        before = made.clock.now
        ino, _ = await meta.mkdir(SUPERUSER, ROOT, b"a,b(\xff)", 0o755)
        with pytest.raises(FsError):
            await meta.mkdir(SUPERUSER, ROOT, b"a,b(\xff)", 0o755)
        await meta.rmdir(SUPERUSER, ROOT, b"a,b(\xff)")
        said = [line.decode() for line in await meta.store.oldest_logged(100) if b"a%2C" in line]
    assert [line.split("|")[1] for line in said] == [
        f"CREATE(1,a%2Cb%28%FF%29,0,0,2,493,0,,linux,true):{ino}",
        f"RMDIR(1,a%2Cb%28%FF%29,0):{ino}",
    ]
    first, second = (line.split("|") for line in said)
    assert before < int(first[0].replace(".", "")) < int(second[0].replace(".", ""))
    assert first[2].startswith("(1,")
    assert int(first[2][3:-1]) + 1 == int(second[2][3:-1])


@logged
async def test_sessions_ids_and_jobs(engine: str, tmp_path: Path) -> None:
    async with logging(engine, tmp_path) as (made, meta):
        await meta.mkdir(SUPERUSER, ROOT, b"d", 0o755)
        made.clock.advance(100)
        await meta.heartbeat()
        await meta.close_session()
        said = await texts(await made.store())
    kinds = [text.split("(")[0] for text in said]
    assert kinds == ["INCR_COUNTER", "NEWSESSION", "INCR_COUNTER", "CREATE", "SET", "CLEANSESSION"]
    assert said[2] == "INCR_COUNTER(nextInode,1024)"


@pytest.mark.real
@pytest.mark.parametrize("engine", [SILENT])
async def test_no_log_on_etcd(engine: str, tmp_path: Path) -> None:
    async with logging(engine, tmp_path) as (_, meta):
        await meta.mkdir(SUPERUSER, ROOT, b"d", 0o755)
        assert await meta.store.logged() == 0


@logged
async def test_no_log_without_the_setting(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        await meta.mkdir(SUPERUSER, ROOT, b"d", 0o755)
        assert await meta.store.logged() == 0


@logged
async def test_the_log_is_trimmed_by_age_and_number(engine: str, tmp_path: Path) -> None:
    async with logging(engine, tmp_path, ChangeLogMaxAge=60, ChangeLogMaxLines=5) as (made, meta):
        store = meta.store
        for number in range(4):
            await meta.mkdir(SUPERUSER, ROOT, b"old%d" % number, 0o755)
        made.clock.advance(61)
        for number in range(3):
            await meta.mkdir(SUPERUSER, ROOT, b"new%d" % number, 0o755)
        assert await meta.jobs().change_log()
        left = await texts(store)
        assert [text for text in left if text.startswith("CREATE(1,")] == [
            text for text in left if "new" in text and text.startswith("CREATE(1,")
        ]
        assert "new0" in "".join(left)
        assert len(left) <= 5
        for number in range(9):
            await meta.mkdir(SUPERUSER, ROOT, b"more%d" % number, 0o755)
        assert not await meta.jobs().change_log()  # too early
        made.clock.advance(1)
        await _age(store)
        assert await meta.jobs().change_log()
        left = await texts(store)
        assert len(left) == 5
        assert "more8" in left[-2]


@logged
async def test_a_log_is_followed_while_it_grows_and_is_trimmed(engine: str, tmp_path: Path) -> None:
    async with logging(engine, tmp_path) as (_, meta):
        store = meta.store
        for number in range(3):
            await meta.mkdir(SUPERUSER, ROOT, b"d%d" % number, 0o755)
        everything = await store.logged_after(0, 1000)
        assert [line for _, line in everything] == await store.oldest_logged(1000)
        versions = [version for version, _ in everything]
        assert versions == sorted(set(versions))
        assert versions[-1] == await store.last_logged()
        assert await store.logged_after(versions[1], 2) == everything[2:4]
        assert await store.logged_after(versions[-1], 2) == []
        await store.forget_logged(4)
        assert await store.logged_after(0, 1000) == everything[4:]
        follower = follow(store, versions[4])
        assert [await anext(follower) for _ in everything[5:]] == everything[5:]
        await meta.mkdir(SUPERUSER, ROOT, b"late", 0o755)
        version, line = await anext(follower)
        assert version > versions[-1]
        assert b"CREATE(1,late," in line
        await follower.aclose()  # type: ignore[attr-defined]


class Late(MemoryStore):
    """The second of three entries appears after the third, as on servers where versions are given before the commit."""

    asked = 0

    async def logged_after(self, version: int, count: int) -> list[tuple[int, bytes]]:
        self.asked += 1
        found = [(1, b"a"), (7, b"c")] if self.asked < 3 else [(1, b"a"), (5, b"b"), (7, b"c")]
        return [one for one in found if one[0] > version]


async def test_an_entry_that_appears_late_is_not_lost() -> None:
    follower = follow(Late(), 0)
    assert [await anext(follower) for _ in range(3)] == [(1, b"a"), (5, b"b"), (7, b"c")]
    await follower.aclose()  # type: ignore[attr-defined]


async def _age(store: Store) -> None:
    """Let the last trimming have been long ago."""

    async def operation(tx: Tx) -> None:
        tx.put(CounterKey("lastCleanupChangelog"), 1)

    await store.run(operation)


@logged
async def test_an_attempt_that_failed_leaves_no_entry(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        store = await made.store()
        store.change_log = ChangeLog(lambda: 5 * SECOND + 7)
        store.change_log.sid = 9

        async def fails(tx: Tx) -> None:
            journal.note(tx, "LOST()")
            raise FsError(1)

        async def succeeds(tx: Tx) -> None:
            journal.note(tx, "FIRST()")
            assert tx.journal is not None
            tx.journal.append(LogEntry("SECOND()", 3))

        with pytest.raises(FsError):
            await store.run(fails)
        await store.run(succeeds)
        assert await store.oldest_logged(9) == [b"5.000000007|FIRST()|(9,1)", b"0.000000003|SECOND()|(9,2)"]
        keep_change_log(store, await load_setting(store))
        assert store.change_log is None


def test_escapes() -> None:
    assert escaped(b"a b:\x1f\x7f\xc3%,()\"\\'|") == "a b:%1F%7F%C3%25%2C%28%29%22%5C'|"
