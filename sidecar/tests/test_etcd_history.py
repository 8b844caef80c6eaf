"""etcd's history on a real server: what it tells about a commit whose answer was lost, and clients that work while it is compacted."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from database_servers import blank, kv_database
from jfs.errors import Conflict, StoreUnavailable
from jfs.format.constants import ROOT
from jfs.meta.engines.kv.etcd import EtcdDatabase, Unanswered
from jfs.meta.engines.kv.layout import SETTING
from jfs.meta.engines.kv.proto import etcd_pb2 as pb
from jfs.meta.engines.kv.store import KvStore
from jfs.meta.volume import SUPERUSER, Meta
from meta_volumes import entries, new_file, volume, write

pytestmark = pytest.mark.real
NODE, OTHER = b"A\1\0\0\0\0\0\0\0I", b"A\2\0\0\0\0\0\0\0I"


@pytest.fixture
async def database() -> AsyncIterator[EtcdDatabase]:
    database = kv_database(blank("etcd"))
    assert isinstance(database, EtcdDatabase)
    await put(database, {SETTING: b"{}", NODE: b"before"})
    yield database
    await database.close()


async def put(database: EtcdDatabase, changes: Mapping[bytes, bytes | None]) -> None:
    """As another client."""
    await database.repeat(pb.TxnRequest(success=[database.change_of(*change) for change in changes.items()]))


class Losing:
    """Loses the answer to the next change, and the request as well unless it is to *arrive*."""

    def __init__(self, database: EtcdDatabase, monkeypatch: pytest.MonkeyPatch, *, arrive: bool) -> None:
        self._database = database
        self._arrive = arrive
        self.request: Any = None
        self.afterwards: list[Mapping[bytes, bytes | None]] = []  # what other clients do before anybody looks
        monkeypatch.setattr(database, "change", self._change)

    async def _change(self, request: Any) -> Any:
        self.request = request
        since = self._database._revision
        if self._arrive:
            assert (await self._database.repeat(request)).succeeded
        for changes in self.afterwards:
            await put(self._database, changes)
        raise Unanswered("lost", since)


async def commit(database: EtcdDatabase, read: bytes, changes: Mapping[bytes, bytes | None]) -> None:
    attempt = database.attempt(fresh=True)
    await attempt.get([read])
    await attempt.commit(changes)


@pytest.mark.parametrize("key", [NODE, OTHER])
async def test_what_comes_late_is_not_done(database: EtcdDatabase, monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    """Whether the key that was read is there, is written, or neither."""
    losing = Losing(database, monkeypatch, arrive=False)
    with pytest.raises(Conflict):
        await commit(database, key, {OTHER: b"new"})
    assert not (await database.repeat(losing.request)).succeeded
    assert await database.get([NODE, OTHER]) == [b"before", None]


async def test_a_commit_that_others_have_undone_is_found(
    database: EtcdDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing = Losing(database, monkeypatch, arrive=True)
    losing.afterwards = [{NODE: b"another's"}, {OTHER: None}, *({SETTING: b"%d" % n} for n in range(300))]
    await commit(database, NODE, {NODE: b"after", OTHER: b"new"})
    assert await database.get([NODE, OTHER]) == [b"another's", None]


async def test_a_like_change_of_another_is_not_taken_for_it(
    database: EtcdDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing = Losing(database, monkeypatch, arrive=False)
    losing.afterwards = [{OTHER: b"new"}, {NODE: b"after"}]  # not at one moment
    with pytest.raises(Conflict):
        await commit(database, NODE, {NODE: b"after", OTHER: b"new"})


async def test_history_that_was_compacted_leaves_it_unknown(
    database: EtcdDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing = Losing(database, monkeypatch, arrive=True)
    losing.afterwards = [{NODE: b"another's", OTHER: None}]
    touch = database.touch

    async def compacting(key: bytes, revision: int) -> tuple[bool, int]:
        found = await touch(key, revision)
        await database._ask("KV", "Compact", pb.CompactionRequest(revision=found[1]), pb.CompactionResponse)
        return found

    monkeypatch.setattr(database, "touch", compacting)
    with pytest.raises(StoreUnavailable, match=r"compacted; whether a change was made is unknown"):
        await commit(database, NODE, {NODE: b"after", OTHER: b"new"})


async def test_clients_work_while_the_history_is_compacted(tmp_path: Path) -> None:
    async with volume("etcd", tmp_path) as made:
        clients = [await made.client() for _ in range(2)]
        store = clients[0].store
        assert isinstance(store, KvStore)
        database = store._database
        assert isinstance(database, EtcdDatabase)
        compacted = 0

        async def compact() -> None:
            nonlocal compacted
            while True:
                await database.page(b"", b"\xff", 1)
                revision = database._revision
                if revision > compacted:
                    request = pb.CompactionRequest(revision=revision, physical=True)
                    await database._ask("KV", "Compact", request, pb.CompactionResponse)
                    compacted = revision

        async def work(meta: Meta, number: int) -> None:
            for turn in range(30):
                name = b"%d-%d" % (number, turn)
                ino = await new_file(meta, name)
                await write(meta, ino, 0, 100)
                await meta.rename(SUPERUSER, ROOT, name, ROOT, b"moved-" + name, 0)
                assert b"moved-" + name in await entries(meta.store, ROOT)
                if turn % 2:
                    await meta.unlink(SUPERUSER, ROOT, b"moved-" + name)

        compacting = asyncio.create_task(compact())
        before = compacted
        await asyncio.gather(*(work(meta, number) for number, meta in enumerate(clients)))
        assert not compacting.done()
        compacting.cancel()
        await asyncio.gather(compacting, return_exceptions=True)
        assert compacted > before
        assert len(await entries(store, ROOT)) == 30
