"""A random history of transactions on an engine beside a plain dictionary: after each, every way to read agrees."""

import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import store_engines as engines
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from jfs.format.slices import Slice
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DelayedKey,
    DeletedFileKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    NodeKey,
    Session,
    SessionKey,
    SettingKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.store.base import Store, Tx

INODES = st.integers(1, 2)
NAMES = st.sampled_from([b"a", b"\xff\xfe", bytes(range(1, 47))])
BLOBS = st.binary(max_size=20)
U32 = st.integers(0, 2**32 - 1)
U31 = st.integers(0, 2**31 - 1)  # what every engine's columns hold (format §4.2.1)
SECONDS = st.integers(-(2**33), 2**33)
NANOSECONDS = st.integers(0, 999_999_999)
SLICES = st.builds(Slice, U32, st.integers(0, 2**63 - 1), U32, U32, U32)
KIND_MODES = st.builds(lambda kind, mode: kind << 12 | mode, st.integers(1, 7), st.integers(0, 0o7777))
LENGTHS = st.integers(0, 2**57)
TIMES = [SECONDS, NANOSECONDS] * 3
ATTRS = st.builds(
    Attr, st.integers(0, 255), KIND_MODES, U31, U31, *TIMES, U31, LENGTHS, U31, LENGTHS, U31, U31, st.integers(0, 255)
)
STATS = st.builds(DirStat, *[st.integers(-(2**40), 2**40)] * 3)
EDGES = st.builds(EdgeKey, INODES, NAMES)
XATTRS = st.builds(XattrKey, INODES, st.sampled_from([b"a", "\u00e9".encode(), bytes(range(1, 47))]))
CHUNKS = st.builds(ChunkKey, INODES, st.integers(0, 1))
NUMBERS = st.one_of(st.just(CounterKey("usedSpace")), st.integers(1, 2).map(lambda number: SliceRefKey(number, 100)))
USAGES = st.builds(DirStatKey, INODES)
SLICE_LISTS = st.lists(SLICES, min_size=1, max_size=3).map(lambda slices: b"".join(piece.pack() for piece in slices))
PLAIN = [
    (st.just(SettingKey()), st.text(max_size=8).map(lambda name: json.dumps(name).encode())),
    (st.builds(NodeKey, INODES), ATTRS),
    (st.builds(SymlinkKey, INODES), BLOBS.filter(bool)),
    (st.builds(SessionKey, INODES), st.builds(Session, st.integers(0, 2**33), BLOBS)),
    (st.builds(SustainedKey, INODES, INODES), st.just(True)),
    (INODES.map(lambda ino: DeletedFileKey(ino, ino * 1000)), st.integers(0, 2**33)),
    (INODES.map(lambda number: DelayedKey(number, number * 10)), BLOBS.filter(bool)),
    (st.just(CounterKey("nextTrash")), st.integers(-(2**40), 2**40)),
]


def actions(keys: Any, records: Any, *more: Any) -> Any:
    """Actions on one kind of record."""
    return st.one_of(
        st.tuples(st.just("put"), keys, records),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("get"), keys),
        *more,
    )


# A transaction keeps to one kind most of the time, so that its actions meet.
GROUPS = [
    actions(EDGES, st.builds(Entry, st.integers(1, 7), INODES), st.tuples(st.just("is_empty"), INODES)),
    actions(XATTRS, BLOBS, st.tuples(st.just("clear_xattrs"), INODES), st.tuples(st.just("xattr_names"), INODES)),
    actions(CHUNKS, SLICE_LISTS, st.tuples(st.just("append"), CHUNKS, SLICES, st.booleans())),
    actions(NUMBERS, st.integers(-2, 3), st.tuples(st.just("add"), NUMBERS, st.integers(-3, 3))),
    actions(USAGES, STATS, st.tuples(st.just("add_stat"), USAGES, STATS)),
    st.one_of(*(actions(keys, records) for keys, records in PLAIN)),
]
HISTORIES = st.sampled_from([*GROUPS, st.one_of(*GROUPS)]).flatmap(
    lambda group: st.lists(group, min_size=1, max_size=7)
)


class Model:
    """What the records are."""

    def __init__(self, missing_slice: int) -> None:
        self.missing_slice = missing_slice
        self.records: dict[Any, Any] = {}

    def copy(self) -> "Model":
        other = Model(self.missing_slice)
        other.records = dict(self.records)
        return other

    def get(self, key: Any) -> Any:
        return self.records.get(key, self.missing_slice if isinstance(key, SliceRefKey) else None)

    def of(self, kind: type, **fields: int) -> list[Any]:
        return [
            key
            for key in self.records
            if isinstance(key, kind) and all(getattr(key, name) == value for name, value in fields.items())
        ]

    def apply(self, action: tuple[Any, ...]) -> Any:
        records = self.records
        match action:
            case ("put", key, record):
                records[key] = record
            case ("delete", key):
                records.pop(key, None)
            case ("get", key):
                return self.get(key)
            case ("add", key, delta):
                records[key] = (self.get(key) or 0) + delta
            case ("add_stat", key, change):
                if key in records:
                    records[key] = DirStat(*(a + b for a, b in zip(records[key], change, strict=True)))
            case ("append", key, piece, existing_only):
                if key in records or not existing_only:
                    records[key] = records.get(key, b"") + piece.pack()
            case ("clear_xattrs", ino):
                for key in self.of(XattrKey, ino=ino):
                    del records[key]
            case ("is_empty", ino):
                return not self.of(EdgeKey, parent=ino)
            case ("xattr_names", ino):
                return sorted(key.name for key in self.of(XattrKey, ino=ino))
        return None


async def perform(tx: Tx, action: tuple[Any, ...]) -> Any:
    match action:
        case ("put", key, record):
            tx.put(key, record)
        case ("delete", key):
            tx.delete(key)
        case ("get", key):
            return (await tx.get(key))[0]
        case ("add", key, delta):
            tx.add(key, delta)
        case ("add_stat", key, change):
            tx.add_stat(key, change)
        case ("append", key, piece, existing_only):
            tx.append(key, piece, existing_only=existing_only)
        case ("clear_xattrs", ino):
            tx.clear_xattrs(ino)
        case ("is_empty", ino):
            return await tx.is_empty(ino)
        case ("xattr_names", ino):
            return sorted(await tx.xattr_names(ino))
    return None


class Broken(Exception):
    """What an operation of the test raises."""


class StoreMachine(RuleBasedStateMachine):
    """Two clients of one database and the model."""

    engine = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="jfs-store-")
        self.stack = AsyncExitStack()
        self.clients: list[Store] = self.runner.run(self._open())
        self.model = Model(0 if self.engine in engines.SQL else 1)
        self.written: set[Any] = set()

    async def _open(self) -> list[Store]:
        opener = await self.stack.enter_async_context(engines.database(self.engine, Path(self.folder.name)))
        return [await opener(), await opener()]

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        self.folder.cleanup()

    @rule(client=st.integers(0, 1), history=HISTORIES, breaks=st.booleans())
    def transaction(self, client: int, history: list[tuple[Any, ...]], breaks: bool) -> None:
        model = self.model.copy()
        expected = [model.apply(action) for action in history]

        async def operation(tx: Tx) -> list[Any]:
            found = [await perform(tx, action) for action in history]
            if breaks and len(history) % 3 == 0:
                raise Broken
            return found

        async def attempt() -> list[Any] | None:
            try:
                return await self.clients[client].run(operation, near=(1,))
            except Broken:
                return None

        found = self.runner.run(attempt())
        if found is None:
            return
        assert found == expected
        self.model = model
        self.written.update(model.records)

    @precondition(lambda self: self.written)
    @rule(client=st.integers(0, 1))
    def read_everything(self, client: int) -> None:
        self.runner.run(self._compare(self.clients[client]))

    async def _compare(self, store: Store) -> None:
        model, keys = self.model, list(self.written)
        assert dict(zip(keys, await store.get(*keys), strict=True)) == {key: model.get(key) for key in keys}
        for ino in range(1, 5):
            edges = {key.name: model.records[key] for key in model.of(EdgeKey, parent=ino)}
            listed: dict[bytes, Any] = {}
            async for page in store.list_directory(ino, plus=True):
                assert page.attrs is not None
                for name, entry, attr in zip(page.names, page.entries, page.attrs, strict=True):
                    listed[name] = entry
                    assert attr == model.get(NodeKey(entry.ino))
            assert listed == edges
            for name, entry in edges.items():
                assert await store.lookup(ino, name) == (entry, model.get(NodeKey(entry.ino)))
            assert await store.chunk_indexes(ino) == sorted(key.indx for key in model.of(ChunkKey, ino=ino))
            sustained = sorted([found async for found in store.sustained(ino)])
            assert sustained == sorted(key.ino for key in model.of(SustainedKey, sid=ino))
        assert {ino: attr async for ino, attr in store.nodes()} == {
            key.ino: model.records[key] for key in model.of(NodeKey)
        }
        assert {sid: session async for sid, session in store.sessions()} == {
            key.sid: model.records[key] for key in model.of(SessionKey)
        }
        unreferenced = {key[:2] for key in model.of(SliceRefKey) if model.records[key] <= 0}
        assert {found async for found in store.unreferenced_slices()} == unreferenced
        queue = [found async for found in store.deleted_files()]
        assert {(ino, length): since for ino, length, since in queue} == {
            key[:2]: model.records[key] for key in model.of(DeletedFileKey)
        }
        assert [since for *_, since in queue] == sorted(since for *_, since in queue)
        assert {(slice_id, time): records async for slice_id, time, records in store.delayed_slices()} == {
            key[:2]: model.records[key] for key in model.of(DelayedKey)
        }


def run_machine(engine: str, examples: int) -> None:
    machine = type("Machine", (StoreMachine,), {"engine": engine})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate]
            if engine not in engines.FAST
            else list(Phase),  # shrinking starts thousands of servers
            suppress_health_check=[
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.function_scoped_fixture,
                HealthCheck.filter_too_much,
            ],
        ),
    )


@pytest.mark.parametrize("engine", engines.FAST)
def test_history(engine: str) -> None:
    run_machine(engine, 20)


@pytest.mark.real
@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ["redis", "redis-watch", "redis-cluster", "postgres", "mysql", "etcd", "tikv"])
def test_history_on_servers(engine: str) -> None:
    run_machine(engine, 20)
