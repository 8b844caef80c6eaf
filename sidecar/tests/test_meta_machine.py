"""Two clients of one volume against a small model of a POSIX tree: random operations, same answers, and after every step the same
tree; at the end every side record is right (`audit`)."""

import asyncio
import errno
import os
from collections.abc import Awaitable
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from jfs.errors import FsError
from jfs.format.constants import DIRECTORY, FILE, SYMLINK
from jfs.format.setting import new_setting
from jfs.format.slices import Slice, view
from jfs.meta.engines.memory.database import MemoryDatabase
from jfs.meta.engines.memory.store import MemoryStore
from jfs.meta.volume import EXCHANGE, NOREPLACE, SUPERUSER, Meta, MetaOptions, format_volume
from meta_volumes import UUID, Clock, audit, errno_of

NAMES = st.sampled_from([b"a", b"b", b"c"])
CLIENTS = st.integers(0, 1)
PLACES = st.integers(0, 4)  # an index into the directories or files there are


class Node:
    """An inode of the model; a file's content is the id of the slice behind each byte, 0 for zeros."""

    def __init__(self, ino: int, kind: int) -> None:
        self.ino = ino
        self.kind = kind
        self.names: dict[bytes, Node] = {}
        self.links = 0
        self.content: list[int] = []
        self.opened: set[int] = set()


class Tree:
    """The model: answers with an errno or changes itself. Permissions are out of scope here."""

    def __init__(self) -> None:
        self.root = Node(1, DIRECTORY)

    def directories(self) -> list[Node]:
        found = [self.root]
        for node in found:
            found += [child for _, child in sorted(node.names.items()) if child.kind == DIRECTORY]
        return found

    def files(self) -> list[Node]:
        found: dict[int, Node] = {}
        for directory in self.directories():
            found |= {child.ino: child for child in directory.names.values() if child.kind == FILE}
        return list(found.values())

    def is_below(self, node: Node, above: Node) -> bool:
        return node is above or any(
            child.kind == DIRECTORY and self.is_below(node, child) for child in above.names.values()
        )

    def remove(self, parent: Node, name: bytes, *, directory: bool) -> int:
        node = parent.names.get(name)
        if node is None:
            return errno.ENOENT
        if directory and node.kind != DIRECTORY:
            return errno.ENOTDIR
        if not directory and node.kind == DIRECTORY:
            return errno.EPERM
        if node.names:
            return errno.ENOTEMPTY
        del parent.names[name]
        node.links -= 1
        return 0

    def rename(self, src: Node, name: bytes, dst: Node, newname: bytes, flags: int) -> int:
        node, other = src.names.get(name), dst.names.get(newname)
        if node is None:
            return errno.ENOENT
        if src is dst and name == newname:
            return 0
        if other is not None and flags == NOREPLACE:
            return errno.EEXIST
        if other is node:
            return 0
        if other is not None and flags != EXCHANGE and (node.kind == DIRECTORY) != (other.kind == DIRECTORY):
            return errno.ENOTDIR if node.kind == DIRECTORY else errno.EISDIR
        loop = self._loop(node, dst)
        if loop:
            return loop
        if flags == EXCHANGE and other is not None:
            loop = self._loop(other, src)
            if loop:
                return loop
        if other is not None and flags != EXCHANGE:
            if other.names:
                return errno.ENOTEMPTY
            other.links -= 1
        if flags == EXCHANGE and other is None:
            return errno.ENOENT
        del src.names[name]
        if flags == EXCHANGE and other is not None:
            src.names[name] = other
        dst.names[newname] = node
        return 0

    def _loop(self, node: Node, directory: Node) -> int:
        """EPERM for the directory itself or its parent, EINVAL further up (format §5.3 rename 6)."""
        if directory is node or directory in node.names.values():
            return errno.EPERM
        return errno.EINVAL if node.kind == DIRECTORY and self.is_below(directory, node) else 0


class Machine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.tree = Tree()
        self.clients: list[Meta] = []

    def run(self, awaitable: Awaitable[Any]) -> Any:
        async def call() -> Any:
            return await awaitable

        return self.runner.run(call())

    def answer(self, awaitable: Awaitable[Any]) -> tuple[int, Any]:
        """(errno or 0, result)."""
        try:
            return 0, self.run(awaitable)
        except FsError as error:
            return error.errno, None

    @initialize(trash=st.booleans(), cached=st.booleans())
    def begin(self, trash: bool, cached: bool) -> None:
        database = MemoryDatabase()
        # With caches there is one client, since another one's changes would rightly be seen late.
        seconds = 1000.0 if cached else 0.0
        options = MetaOptions(attr_timeout=seconds, entry_timeout=seconds, dir_entry_timeout=seconds, no_bgjob=True)

        async def delete(id: int, size: int) -> None:
            return

        async def start() -> None:
            setting = new_setting("demo", UUID, trash_days=int(trash))
            await format_volume(MemoryStore(database), setting, force=False, no_update=False, now=self.clock())
            for _ in range(1 if cached else 2):
                store = MemoryStore(database)
                self.clients.append(await Meta.load(store, options, delete_objects=delete, clock=self.clock))
                await self.clients[-1].start_session()

        self.run(start())

    def client(self, number: int) -> Meta:
        return self.clients[number % len(self.clients)]

    def directory(self, place: int) -> Node:
        found = self.tree.directories()
        return found[place % len(found)]

    def file(self, place: int) -> Node:
        found = self.tree.files()
        return found[place % len(found)]

    def has_files(self) -> bool:
        return bool(self.tree.files())

    @rule(client=CLIENTS, place=PLACES, name=NAMES, kind=st.sampled_from([FILE, DIRECTORY, SYMLINK]))
    def make(self, client: int, place: int, name: bytes, kind: int) -> None:
        parent, meta = self.directory(place), self.client(client)
        if kind == DIRECTORY:
            code, made = self.answer(meta.mkdir(SUPERUSER, parent.ino, name, 0o755))
        elif kind == SYMLINK:
            code, made = self.answer(meta.symlink(SUPERUSER, parent.ino, name, b"to"))
        else:
            code, made = self.answer(meta.mknod(SUPERUSER, parent.ino, name, FILE, 0o644))
        assert code == (errno.EEXIST if name in parent.names else 0)
        if not code:
            parent.names[name] = Node(made[0], kind)
            parent.names[name].links = 1

    @rule(client=CLIENTS, place=PLACES, name=NAMES, exclusive=st.booleans())
    def create(self, client: int, place: int, name: bytes, exclusive: bool) -> None:
        parent, number = self.directory(place), client % len(self.clients)
        flags = os.O_RDWR | (os.O_EXCL if exclusive else 0)
        code, made = self.answer(self.clients[number].create(SUPERUSER, parent.ino, name, 0o644, flags))
        there = parent.names.get(name)
        assert code == (errno.EEXIST if there and (exclusive or there.kind != FILE) else 0)
        if code:
            return
        if there is None:
            there = parent.names[name] = Node(made[0], FILE)
            there.links = 1
        assert made[0] == there.ino
        if number in there.opened:
            self.run(self.clients[number].release(there.ino))
        there.opened.add(number)

    @precondition(has_files)
    @rule(place=PLACES)
    def close_all(self, place: int) -> None:
        node = self.file(place)
        for number in sorted(node.opened):
            self.run(self.clients[number].release(node.ino))
        node.opened.clear()

    @precondition(has_files)
    @rule(client=CLIENTS, file=PLACES, place=PLACES, name=NAMES)
    def link(self, client: int, file: int, place: int, name: bytes) -> None:
        node, parent = self.file(file), self.directory(place)
        code, _ = self.answer(self.client(client).link(SUPERUSER, node.ino, parent.ino, name))
        assert code == (errno.EEXIST if name in parent.names else 0)
        if not code:
            parent.names[name] = node
            node.links += 1

    @rule(client=CLIENTS, place=PLACES, name=NAMES)
    def unlink(self, client: int, place: int, name: bytes) -> None:
        parent, number = self.directory(place), client % len(self.clients)
        node = parent.names.get(name)
        code, _ = self.answer(self.clients[number].unlink(SUPERUSER, parent.ino, name))
        assert code == self.tree.remove(parent, name, directory=False)
        if not code and node is not None:
            self.end(node)

    def end(self, node: Node) -> None:
        """Close the handles of a file without names, which is then no more in the model."""
        if node.kind == FILE and not any(node in parent.names.values() for parent in self.tree.directories()):
            for number in sorted(node.opened):
                self.run(self.clients[number].release(node.ino))

    @rule(client=CLIENTS, place=PLACES, name=NAMES)
    def rmdir(self, client: int, place: int, name: bytes) -> None:
        parent = self.directory(place)
        code, _ = self.answer(self.client(client).rmdir(SUPERUSER, parent.ino, name))
        assert code == self.tree.remove(parent, name, directory=True)

    @rule(
        client=CLIENTS,
        src=PLACES,
        name=NAMES,
        dst=PLACES,
        newname=NAMES,
        flags=st.sampled_from([0, 0, NOREPLACE, EXCHANGE]),
    )
    def rename(self, client: int, src: int, name: bytes, dst: int, newname: bytes, flags: int) -> None:
        source, target = self.directory(src), self.directory(dst)
        replaced = target.names.get(newname)
        code, _ = self.answer(self.client(client).rename(SUPERUSER, source.ino, name, target.ino, newname, flags))
        assert code == self.tree.rename(source, name, target, newname, flags)
        if not code and replaced is not None:
            self.end(replaced)

    @precondition(has_files)
    @rule(client=CLIENTS, place=PLACES, offset=st.integers(0, 60), size=st.integers(1, 40))
    def write(self, client: int, place: int, offset: int, size: int) -> None:
        node, meta = self.file(place), self.client(client)
        id = self.run(meta.new_slice_id())
        self.run(meta.commit_slice(node.ino, 0, offset, Slice(offset, id, size, 0, size), self.clock()))
        node.content += [0] * (offset + size - len(node.content))
        node.content[offset : offset + size] = [id] * size

    @precondition(has_files)
    @rule(client=CLIENTS, place=PLACES, length=st.integers(0, 100))
    def truncate(self, client: int, place: int, length: int) -> None:
        node = self.file(place)
        self.run(self.client(client).truncate(SUPERUSER, node.ino, length, opened=False))
        node.content = (node.content + [0] * length)[:length]

    @invariant()
    def same_tree(self) -> None:
        for meta in self.clients:
            self.run(self.compare(meta))

    async def compare(self, meta: Meta) -> None:
        for directory in self.tree.directories():
            attr = await meta.getattr(directory.ino)
            assert attr.nlink == 2 + sum(child.kind == DIRECTORY for child in directory.names.values())
            listed = {}
            async for page in meta.list_directory(SUPERUSER, directory.ino, plus=False):
                listed |= {n: (e.ino, e.kind) for n, e in zip(page.names, page.entries, strict=True)}
            assert listed == {name: (child.ino, child.kind) for name, child in directory.names.items()}
            for name, child in directory.names.items():
                ino, attr = await meta.lookup(SUPERUSER, directory.ino, name)
                assert (ino, attr.kind) == (child.ino, child.kind)
                if child.kind == FILE:
                    assert attr.length == len(child.content)
                    assert await content(meta, ino, attr.length) == child.content
        for name in (b"a", b"b"):
            if name not in self.tree.root.names:
                assert await errno_of(meta.lookup(SUPERUSER, 1, name)) == errno.ENOENT

    def teardown(self) -> None:
        try:
            if self.clients:
                self.run(self.finish())
        finally:
            self.runner.close()

    async def finish(self) -> None:
        for meta in self.clients:
            await meta.close_session()
        await audit(self.clients[0].store)
        for meta in self.clients:
            await meta.close()


async def content(meta: Meta, ino: int, length: int) -> list[int]:
    """The slice id behind each byte of a file of one chunk."""
    painted: list[int] = []
    for segment in view(await meta.read_slices(ino, 0)):
        painted += [segment.id] * segment.len
    return (painted + [0] * length)[:length]


Machine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
TestMetaAgainstModel = Machine.TestCase
