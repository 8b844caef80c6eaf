"""Every operation of a volume, at random, on an engine and on the memory store side by side, by two clients of each and several users:
same errors, same results, same trees; at the end both volumes are examined. What is right on the memory store is said by the model
of `test_meta_machine`; here every engine is held to it, with ACLs, quotas, clones, compaction, locks, ranges and the trash, which that
model does not have."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from jfs.errors import FsError
from jfs.format.constants import APPEND, CHUNK, DIRECTORY, FILE, IMMUTABLE, ROOT, SKIP_TRASH, TRASH
from jfs.format.slices import Segment, view
from jfs.meta.model.acl import ACCESS, DEFAULT, Rule, to_xattr
from jfs.meta.model.attr import Attr
from jfs.meta.model.locks import END, READ, UNLOCK, WRITE, Range
from jfs.meta.model.quota import DIRECTORY as OF_DIRECTORY
from jfs.meta.model.quota import GROUP, USER, QuotaKey
from jfs.meta.operations.access import Caller
from jfs.meta.volume import EXCHANGE, NOREPLACE, SUPERUSER, AttrChange, Meta
from jfs.meta.volume.quotas import Limits, delete_quota, set_quota
from jfs.meta.volume.restoring import restore_hour
from jfs.meta.volume.summary import summary
from meta_volumes import Volume, volume, write

NAMES = st.sampled_from([b"a", b"b", b"\xff"])
NODES = st.integers(0, 11)  # an index into the inodes that there are, or were
CLIENTS = st.integers(0, 1)
CALLERS = st.sampled_from(
    [SUPERUSER, Caller(1000, 1000, 0), Caller(1000, 1000, 0, 0o022, True), Caller(7, 7, 0, 0, True)]
)
OFFSETS = st.sampled_from([0, 1, 4095, 10_000, CHUNK - 10, CHUNK, 3 * CHUNK + 5])
SIZES = st.sampled_from([1, 4096, 9_999, CHUNK + 20])
MODES = st.sampled_from(
    [0, 1, 1 | 2, 16, 16 | 1, 2, 8]
)  # of fallocate: plain, keep size, punch hole, zero range, and refused ones
RULES = st.sampled_from(
    [Rule(7, 5, 5, 0, ((1000, 7),)), Rule(6, 4, 6, 4, (), ((7, 6), (1000, 0))), Rule(7, 5, 0xFFFF, 5), Rule()]
)
SPACES = st.sampled_from([None, -1, 0, 20_000, 1 << 30])
INODES = st.sampled_from([None, -1, 0, 3, 100])
DAY = 86400

Act = Callable[[int, Meta, Any], Awaitable[Any]]


def shown(attr: Attr) -> tuple[Any, ...]:
    """Attributes without times, numbers of inodes and numbers of rules."""
    return (
        *(attr.flags, attr.kind_mode, attr.uid, attr.gid, attr.nlink, attr.length, attr.rdev, attr.tier),
        *(bool(attr.access_acl), bool(attr.default_acl)),
    )


class Twins(RuleBasedStateMachine):
    """Two sides, of which the first is the memory store."""

    engine = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="jfs-twins-")
        self.stack = AsyncExitStack()
        self.sides: list[Volume] = []
        self.clients: list[list[Meta]] = []
        self.nodes: list[list[int]] = [[ROOT], [ROOT]]  # of each side; equal places are the same inode

    @initialize(trash=st.booleans(), acl=st.booleans(), stats=st.booleans())
    def begin(self, trash: bool, acl: bool, stats: bool) -> None:
        async def start() -> None:
            for number, engine in enumerate(("memory", self.engine)):
                place = Path(self.folder.name) / str(number)
                place.mkdir()
                setting = {"trash_days": int(trash), "enable_acl": acl, "dir_stats": stats}
                self.sides.append(await self.stack.enter_async_context(volume(engine, place, **setting)))
                self.clients.append([await self._client(number) for _ in range(2)])

        self.runner.run(start())

    async def _client(self, side: int) -> Meta:
        async def copied(slice_id: int, size: int, segments: Sequence[Segment], tier: int) -> None:
            """Compaction's data: there are none."""

        meta = await self.sides[side].client(no_bgjob=True)
        meta._copy_slice = copied
        return meta

    def teardown(self) -> None:
        try:
            if self.clients:
                self.runner.run(self._finish())
        finally:
            try:
                self.runner.run(self.stack.aclose())
            finally:
                self.runner.close()
                self.folder.cleanup()

    async def _finish(self) -> None:
        trees = [await self._tree(side) for side in range(2)]
        assert trees[0] == trees[1]
        for clients in self.clients:
            for meta in clients:
                await meta.close_session(drain=20)

    # Both sides.

    def both(self, client: int, *places: int, act: Act) -> list[Any] | None:
        """*act*(side, client, inodes) on both; the results, None when both failed, and alike."""

        async def one(side: int) -> tuple[int, Any]:
            known = self.nodes[side]
            try:
                return 0, await act(side, self.clients[side][client], [known[place % len(known)] for place in places])
            except FsError as error:
                return error.errno, None

        outcomes = [self.runner.run(one(side)) for side in range(2)]
        codes = [os.strerror(code) if code else "" for code, _ in outcomes]
        assert codes[0] == codes[1]
        return None if codes[0] else [result for _, result in outcomes]

    def same(self, client: int, *places: int, act: Act) -> None:
        """As `both`, with equal results."""
        results = self.both(client, *places, act=act)
        assert results is None or results[0] == results[1]

    def learn(self, made: list[Any] | None) -> None:
        """Take (inode, attributes) of both sides for the same inode."""
        if made is None:
            return
        (left, left_attr), (right, right_attr) = made
        assert shown(left_attr) == shown(right_attr)
        assert (left in self.nodes[0]) == (right in self.nodes[1])
        if left not in self.nodes[0]:
            self.nodes[0].append(left)
            self.nodes[1].append(right)

    async def _tree(self, side: int) -> dict[bytes, tuple[Any, ...]]:
        """Everything below the root by its path: attributes, content by places in `slices`, target, attributes and rules."""
        meta, found = self.clients[side][0], {}
        waiting = [(b"", ROOT)]
        seen: dict[int, int] = {}
        slices: dict[int, int] = {}
        while waiting:
            path, ino = waiting.pop()
            attr = await meta.getattr(ino)
            names = sorted(await meta.listxattr(ino))
            more: list[Any] = [(name, await meta.getxattr(ino, name)) for name in names]
            if attr.kind == FILE:
                for indx, _ in await meta.file_chunks(ino):
                    for segment in view(await meta.read_slices(ino, indx)):
                        if segment.id:  # what only says that it is empty may be missing, or lie behind the end
                            label = slices.setdefault(segment.id, len(slices))
                            more.append((indx, segment.pos, label, segment.off, segment.len))
            found[path] = (seen.setdefault(ino, len(seen)), shown(attr), more)
            if attr.kind == DIRECTORY:
                async for page in meta.list_directory(SUPERUSER, ino, plus=False):
                    waiting += [
                        (path + b"/" + name, entry.ino) for name, entry in zip(page.names, page.entries, strict=True)
                    ]
                waiting.sort(reverse=True)
        return found

    @rule(client=CLIENTS)
    def same_trees(self, client: int) -> None:
        trees = [self.runner.run(self._tree(side)) for side in range(2)]
        assert trees[0] == trees[1]
        for place in range(len(self.nodes[0])):
            self.same(client, place, act=lambda side, meta, inos: _shown(meta.getattr(inos[0])))

    # Names.

    @rule(
        client=CLIENTS,
        caller=CALLERS,
        parent=NODES,
        name=NAMES,
        kind=st.sampled_from("fdlp"),
        mode=st.integers(0, 0o7777),
    )
    def make(self, client: int, caller: Caller, parent: int, name: bytes, kind: str, mode: int) -> None:
        async def act(side: int, meta: Meta, inos: list[int]) -> tuple[int, Attr]:
            if kind == "d":
                return await meta.mkdir(caller, inos[0], name, mode)
            if kind == "l":
                return await meta.symlink(caller, inos[0], name, b"to")
            if kind == "p":
                return await meta.mknod(caller, inos[0], name, 6, mode)
            ino, attr, _ = await meta.create(caller, inos[0], name, mode, os.O_RDWR | os.O_EXCL)
            await meta.release(ino)
            return ino, attr

        self.learn(self.both(client, parent, act=act))

    @rule(client=CLIENTS, caller=CALLERS, parent=NODES, name=NAMES)
    def lookup(self, client: int, caller: Caller, parent: int, name: bytes) -> None:
        self.learn(self.both(client, parent, act=lambda side, meta, inos: meta.lookup(caller, inos[0], name)))

    @rule(client=CLIENTS, caller=CALLERS, node=NODES, parent=NODES, name=NAMES)
    def link(self, client: int, caller: Caller, node: int, parent: int, name: bytes) -> None:
        self.same(client, node, parent, act=lambda side, meta, inos: _shown(meta.link(caller, inos[0], inos[1], name)))

    @rule(client=CLIENTS, caller=CALLERS, parent=NODES, name=NAMES, skip=st.booleans(), directory=st.booleans())
    def remove(self, client: int, caller: Caller, parent: int, name: bytes, skip: bool, directory: bool) -> None:
        async def act(side: int, meta: Meta, inos: list[int]) -> None:
            await (meta.rmdir if directory else meta.unlink)(caller, inos[0], name, skip_trash=skip)

        self.same(client, parent, act=act)

    @rule(
        client=CLIENTS,
        caller=CALLERS,
        source=NODES,
        name=NAMES,
        goal=NODES,
        newname=NAMES,
        flags=st.sampled_from([0, 0, NOREPLACE, EXCHANGE, NOREPLACE | EXCHANGE]),
    )
    def rename(
        self, client: int, caller: Caller, source: int, name: bytes, goal: int, newname: bytes, flags: int
    ) -> None:
        async def act(side: int, meta: Meta, inos: list[int]) -> None:
            await meta.rename(caller, inos[0], name, inos[1], newname, flags)

        self.same(client, source, goal, act=act)

    @rule(client=CLIENTS, caller=CALLERS, source=NODES, parent=NODES, name=NAMES, preserve=st.booleans())
    def clone(self, client: int, caller: Caller, source: int, parent: int, name: bytes, preserve: bool) -> None:
        made = self.both(
            client,
            source,
            parent,
            act=lambda side, meta, inos: meta.clone(caller, inos[0], inos[1], name, preserve=preserve, umask=0o22),
        )
        if made is not None:
            assert made[0] == made[1]
            self.lookup(client, SUPERUSER, parent, name)

    # Contents.

    @rule(client=CLIENTS, node=NODES, offset=OFFSETS, size=SIZES)
    def write(self, client: int, node: int, offset: int, size: int) -> None:
        async def act(side: int, meta: Meta, inos: list[int]) -> int:
            return len(await write(meta, inos[0], offset, size))

        self.same(client, node, act=act)

    @rule(client=CLIENTS, caller=CALLERS, node=NODES, length=OFFSETS)
    def truncate(self, client: int, caller: Caller, node: int, length: int) -> None:
        self.same(
            client, node, act=lambda side, meta, inos: _shown(meta.truncate(caller, inos[0], length, opened=False))
        )

    @rule(client=CLIENTS, node=NODES, mode=MODES, offset=OFFSETS, size=SIZES)
    def fallocate(self, client: int, node: int, mode: int, offset: int, size: int) -> None:
        self.same(client, node, act=lambda side, meta, inos: _shown(meta.fallocate(inos[0], mode, offset, size)))

    @rule(client=CLIENTS, source=NODES, offset=OFFSETS, goal=NODES, position=OFFSETS, size=SIZES)
    def copy(self, client: int, source: int, offset: int, goal: int, position: int, size: int) -> None:
        async def act(side: int, meta: Meta, inos: list[int]) -> int:
            copied, _ = await meta.copy_range(inos[0], offset, inos[1], position, size)
            return copied

        self.same(client, source, goal, act=act)

    @rule(client=CLIENTS, node=NODES)
    def compact(self, client: int, node: int) -> None:
        """A file, or everything below a directory: what is read is the same, from other slices."""
        self.same(client, node, act=lambda side, meta, inos: meta.compact(inos[0], 1))

    @rule(client=CLIENTS, node=NODES, offset=OFFSETS)
    def seek(self, client: int, node: int, offset: int) -> None:
        for hole in (False, True):

            async def act(side: int, meta: Meta, inos: list[int], hole: bool = hole) -> int:
                length = (await meta.getattr(inos[0])).length
                return await (meta.seek_hole if hole else meta.seek_data)(inos[0], offset, length)

            self.same(client, node, act=act)

    # Attributes.

    @rule(
        client=CLIENTS,
        caller=CALLERS,
        node=NODES,
        mode=st.none() | st.integers(0, 0o7777),
        uid=st.sampled_from([None, None, 0, 1000, 7]),
        gid=st.sampled_from([None, None, 0, 1000, 7]),
        flags=st.sampled_from([None, None, None, 0, SKIP_TRASH, APPEND, IMMUTABLE]),
    )
    def setattr(self, client: int, caller: Caller, node: int, mode: Any, uid: Any, gid: Any, flags: Any) -> None:
        change = AttrChange(mode=mode, uid=uid, gid=gid, flags=flags)
        self.same(client, node, act=lambda side, meta, inos: _shown(meta.setattr(caller, inos[0], change)))

    @rule(client=CLIENTS, caller=CALLERS, node=NODES, acl=RULES, default=st.booleans())
    def set_acl(self, client: int, caller: Caller, node: int, acl: Rule, default: bool) -> None:
        value = b"" if acl.is_empty else to_xattr(acl)

        async def act(side: int, meta: Meta, inos: list[int]) -> None:
            await meta.setxattr(caller, inos[0], DEFAULT if default else ACCESS, value)

        self.same(client, node, act=act)

    @rule(client=CLIENTS, caller=CALLERS, node=NODES, mask=st.integers(0, 7))
    def access(self, client: int, caller: Caller, node: int, mask: int) -> None:
        self.same(client, node, act=lambda side, meta, inos: meta.access(caller, inos[0], mask))

    @rule(
        client=CLIENTS,
        node=NODES,
        name=st.sampled_from([b"user.a", b"user.b", ACCESS]),
        value=st.binary(max_size=9),
        flags=st.integers(0, 2),
    )
    def setxattr(self, client: int, node: int, name: bytes, value: bytes, flags: int) -> None:
        if name != ACCESS:
            self.same(client, node, act=lambda side, meta, inos: meta.setxattr(SUPERUSER, inos[0], name, value, flags))

    @rule(client=CLIENTS, node=NODES, name=st.sampled_from([b"user.a", b"user.b", ACCESS, DEFAULT]))
    def removexattr(self, client: int, node: int, name: bytes) -> None:
        self.same(client, node, act=lambda side, meta, inos: meta.removexattr(SUPERUSER, inos[0], name))

    # Locks.

    @rule(client=CLIENTS, node=NODES, owner=st.integers(1, 2), kind=st.sampled_from([READ, WRITE, UNLOCK]))
    def flock(self, client: int, node: int, owner: int, kind: int) -> None:
        async def act(side: int, meta: Meta, inos: list[int]) -> bool:
            return await meta.locks.flock(inos[0], owner, kind, wait=False) is None

        self.same(client, node, act=act)

    @rule(
        client=CLIENTS,
        node=NODES,
        owner=st.integers(1, 2),
        kind=st.sampled_from([READ, WRITE, UNLOCK]),
        start=st.integers(0, 9),
        end=st.sampled_from([9, 20, END]),
    )
    def setlk(self, client: int, node: int, owner: int, kind: int, start: int, end: int) -> None:
        async def act(side: int, meta: Meta, inos: list[int]) -> bool:
            return await meta.locks.setlk(inos[0], owner, Range(kind, owner, start, end), wait=False) is None

        self.same(client, node, act=act)
        self.same(client, node, act=lambda side, meta, inos: meta.locks.getlk(inos[0], 3, Range(WRITE, 3, 0, END)))

    # Quotas, numbers, the trash, other clients.

    @rule(client=CLIENTS, node=NODES, what=st.sampled_from([OF_DIRECTORY, USER, GROUP]), space=SPACES, inodes=INODES)
    def quota(self, client: int, node: int, what: int, space: int | None, inodes: int | None) -> None:
        async def act(side: int, meta: Meta, inos: list[int]) -> Any:
            key = QuotaKey(what, inos[0] if what == OF_DIRECTORY else 1000)
            if what == OF_DIRECTORY and (await meta.getattr(inos[0])).kind != DIRECTORY:
                return None
            if space is None and inodes is None:
                await delete_quota(meta.store, key)
                made = None
            else:
                made = await set_quota(meta.store, meta.setting, key, Limits(space, inodes), strict=True)
            for each in self.clients[side]:
                await each.heartbeat()
            return made

        self.same(client, node, act=act)

    @rule(client=CLIENTS, node=NODES)
    def numbers(self, client: int, node: int) -> None:
        async def act(side: int, meta: Meta, inos: list[int]) -> Any:
            if (await meta.getattr(inos[0])).kind != DIRECTORY:
                return None
            return await summary(meta.store, inos[0], strict=True), await meta.statfs(inos[0])

        self.same(client, node, act=act)

    @rule(client=CLIENTS)
    def empty_trash(self, client: int) -> None:
        for side in self.sides:
            side.clock.advance(3 * DAY)

        async def act(side: int, meta: Meta, inos: list[int]) -> None:
            for each in self.clients[side]:
                await each.heartbeat()  # three days are long for a session
            await meta.jobs().expire_trash()

        self.same(client, act=act)

    @rule(client=CLIENTS, put_back=st.booleans())
    def restore(self, client: int, put_back: bool) -> None:
        """Each hour of the trash."""

        async def act(side: int, meta: Meta, inos: list[int]) -> Any:
            pages = [page async for page in meta.list_directory(SUPERUSER, TRASH, plus=False)]
            hours = sorted(name for page in pages for name in page.names)
            done = [await restore_hour(meta, hour, put_back=put_back, at_once=1) for hour in hours]
            return hours, [(one.moved, one.left, len(one.failed)) for one in done]

        self.same(client, act=act)

    @rule(client=CLIENTS)
    def come_back(self, client: int) -> None:
        """The client ends and another one takes its place: its locks are gone."""

        async def act(side: int) -> None:
            await self.clients[side][client].close_session(drain=20)
            self.clients[side][client] = await self._client(side)

        for side in range(2):
            self.runner.run(act(side))


async def _shown(awaitable: Awaitable[Attr]) -> tuple[Any, ...]:
    return shown(await awaitable)


def run_twins(engine: str, examples: int, steps: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # A root that is not answered in time has default attributes: on a slow machine they would make the difference.
        patch.setattr("jfs.meta.volume.state.within", lambda answer, seconds: answer)
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            type("Machine", (Twins,), {"engine": engine}),
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=[
                    HealthCheck.too_slow,
                    HealthCheck.data_too_large,
                    HealthCheck.filter_too_much,
                ],
            ),
        )


@pytest.mark.timeout(300)
def test_all_operations_on_sqlite() -> None:
    run_twins("sqlite3", 6, 40)


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["sqlite3", "redis", "redis-watch", "postgres", "mysql", "etcd", "tikv"])
def test_all_operations_on_each_engine(engine: str) -> None:
    run_twins(engine, 40, 60)
