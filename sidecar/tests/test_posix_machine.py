"""Our mount and ext4 (any local file system that has what is asked) side by side: random system calls by three users get the same
answers, errnos included, and leave the same tree. JFS_MACHINE_EXAMPLES makes a long run of it."""

import contextlib
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from ext4_place import ext4, open_directory
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from mount_parts import Volume, check_by_real, mounted, redis_server
from posix_world import (
    EXCHANGE,
    KEEP_SIZE,
    NOREPLACE,
    NOW,
    OMIT,
    PUNCH_HOLE,
    ROOT,
    WHITEOUT,
    ZERO_RANGE,
    Actor,
    World,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600 if "JFS_MACHINE_EXAMPLES" in os.environ else 240)]

EXAMPLES = int(os.environ.get("JFS_MACHINE_EXAMPLES", "50"))
STEPS = 40

_ONE, _TWO = Actor(1001, 2001, (2001, 2002)), Actor(1002, 2002, (2002,))
ACTORS = st.sampled_from([ROOT, ROOT, ROOT, _ONE, _TWO])
NAMES = st.sampled_from([b"a", b"b", b"\xff\xfe"])
PATHS = st.one_of(
    st.lists(NAMES, min_size=1, max_size=1),
    st.lists(NAMES, min_size=1, max_size=3),
    st.sampled_from([[b"a", b"a"], [b"a", b"\xff\xfe"], [b"b", b"a"], [b"b", b"b"]]),
    st.sampled_from([[b"a", b".."], [b"a", b"."], [b"x" * 256], [b"x" * 255], [b"b", b""]]),
)
SLOTS = st.sampled_from([0, 1, 2, 3, 0, 1, 2])
MODES = st.sampled_from(
    [0o777, 0o755, 0o700, 0o644, 0o600, 0o070, 0o007, 0o000, 0o4755, 0o2755, 0o2775, 0o1777, 0o6777]
)
UIDS = st.sampled_from([-1, 0, 1001, 1002])
GIDS = st.sampled_from([-1, 0, 2001, 2002])
OFFSETS = st.one_of(st.integers(0, 300), st.sampled_from([4095, 4096, 8192, 131_072, 200_000]))
LENGTHS = st.one_of(st.integers(0, 300), st.sampled_from([4096, 8191, 70_000, 250_000]))
DATA = st.one_of(
    st.binary(min_size=0, max_size=40),
    st.builds(lambda byte, size: bytes([byte]) * size, st.integers(1, 255), st.sampled_from([300, 4096, 70_000])),
)
FLAGS = st.builds(
    lambda access, more: access | sum(set(more)),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
    st.lists(
        st.sampled_from([os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY]),
        max_size=3,
    ),
).filter(lambda flags: flags & (os.O_CREAT | os.O_DIRECTORY) != os.O_CREAT | os.O_DIRECTORY)
TIMES = st.sampled_from(
    [NOW, OMIT, 0, 1_700_000_000_123_456_789, 999_999_999, 4_102_444_800 * 10**9 + 1, -1_500_000_000]
)
ATTRIBUTES = st.sampled_from([b"user.a", b"user.b", b"user.\xff", b"trusted.t", b"security.s"])


class Machine(RuleBasedStateMachine):
    """See the module. *places* are the two directories, set by the test."""

    places: ClassVar[tuple[Path, Path]]
    numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        number = next(self.numbers)
        self.tops = [place / f"example-{number}" for place in self.places]
        for top in self.tops:
            top.mkdir()
            top.chmod(0o777)
        self.worlds = [World(top) for top in self.tops]
        self.begin()

    def begin(self) -> None:
        """Something of each kind, so that few calls fail."""
        for names, mode in (([b"a"], 0o777), ([b"b"], 0o1777), ([b"a", b"\xff\xfe"], 0o2775)):
            self.both(ROOT, "mkdir", names, mode)
            self.both(ROOT, "chmod", names, mode)
        self.both(ROOT, "chown", [b"b"], 1001, 2001, True)
        for slot, (actor, names, flags) in enumerate(
            ((ROOT, [b"a", b"a"], 0), (_ONE, [b"b", b"a"], os.O_APPEND), (_TWO, [b"a", b"b"], 0))
        ):
            self.both(actor, "open", names, os.O_RDWR | os.O_CREAT | flags, 0o666, slot)
            self.both(ROOT, "chmod", names, (0o666, 0o6777, 0o644)[slot])
            self.both(ROOT, "write", slot, b"0123456789" * 20)
        self.both(ROOT, "link", [b"a", b"b"], [b"b", b"b"], False)
        self.both(ROOT, "symlink", b"a", [b"\xff\xfe"])

    def both(self, actor: Actor, name: str, *args: Any) -> Any:
        answers = [world.do(actor, name, *args) for world in self.worlds]
        assert answers[0] == answers[1], f"{name}{args} by {actor}: {answers[0]} on ext4, {answers[1]} here"
        return answers[0]

    # -- descriptors --------------------------------------------------------------------------------------------

    @rule(actor=ACTORS, path=PATHS, flags=FLAGS, mode=MODES, slot=SLOTS)
    def open(self, actor: Actor, path: list[bytes], flags: int, mode: int, slot: int) -> None:
        self.both(actor, "open", path, flags, mode, slot)

    @rule(path=PATHS, mode=st.sampled_from([0o644, 0o666, 0o4777]), slot=SLOTS, data=DATA)
    def make_file(self, path: list[bytes], mode: int, slot: int, data: bytes) -> None:
        if not self.both(ROOT, "open", path, os.O_RDWR | os.O_CREAT, mode, slot)[0]:
            self.both(ROOT, "write", slot, data)

    @rule(actor=ACTORS, path=PATHS, exclusive=st.booleans(), slot=SLOTS)
    def tmpfile(self, actor: Actor, path: list[bytes], exclusive: bool, slot: int) -> None:
        self.both(actor, "tmpfile", path, os.O_EXCL if exclusive else 0, slot)

    @rule(slot=SLOTS, path=PATHS)
    def name_descriptor(self, slot: int, path: list[bytes]) -> None:
        self.both(ROOT, "name_descriptor", slot, path)

    @rule(actor=ACTORS, place=PATHS, path=PATHS, slot=SLOTS, data=DATA)
    def tmpfile_with_a_name(self, actor: Actor, place: list[bytes], path: list[bytes], slot: int, data: bytes) -> None:
        if not self.both(actor, "tmpfile", place, 0, slot)[0]:
            self.both(actor, "write", slot, data)
            self.both(ROOT, "name_descriptor", slot, path)

    @rule(slot=SLOTS, other=SLOTS)
    def dup(self, slot: int, other: int) -> None:
        self.both(ROOT, "dup", slot, other)

    @rule(slot=SLOTS)
    def close(self, slot: int) -> None:
        self.both(ROOT, "close", slot)

    @rule(slot=SLOTS, size=LENGTHS)
    def read(self, slot: int, size: int) -> None:
        self.both(ROOT, "read", slot, size)

    @rule(actor=ACTORS, slot=SLOTS, data=DATA)
    def write(self, actor: Actor, slot: int, data: bytes) -> None:
        self.both(actor, "write", slot, data)

    @rule(slot=SLOTS, size=LENGTHS, offset=OFFSETS)
    def pread(self, slot: int, size: int, offset: int) -> None:
        self.both(ROOT, "pread", slot, size, offset)

    @rule(actor=ACTORS, slot=SLOTS, data=DATA, offset=OFFSETS)
    def pwrite(self, actor: Actor, slot: int, data: bytes, offset: int) -> None:
        self.both(actor, "pwrite", slot, data, offset)

    @rule(slot=SLOTS, on=st.booleans())
    def append(self, slot: int, on: bool) -> None:
        self.both(ROOT, "append", slot, on)

    @rule(slot=SLOTS, offset=st.integers(-100, 5000), whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    def lseek(self, slot: int, offset: int, whence: int) -> None:
        self.both(ROOT, "lseek", slot, offset, whence)

    @rule(slot=SLOTS)
    def holes(self, slot: int) -> None:
        self.both(ROOT, "holes", slot)

    @rule(actor=ACTORS, slot=SLOTS, length=LENGTHS)
    def ftruncate(self, actor: Actor, slot: int, length: int) -> None:
        self.both(actor, "ftruncate", slot, length)

    @rule(
        slot=SLOTS,
        mode=st.sampled_from([0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE]),
        offset=OFFSETS,
        size=LENGTHS,
    )
    def fallocate(self, slot: int, mode: int, offset: int, size: int) -> None:
        self.both(ROOT, "fallocate", slot, mode, offset, size)

    @rule(source=SLOTS, sink=SLOTS, size=LENGTHS, offset=OFFSETS, position=OFFSETS)
    def copy_file_range(self, source: int, sink: int, size: int, offset: int, position: int) -> None:
        self.both(ROOT, "copy_file_range", source, sink, size, offset, position)

    @rule(source=SLOTS, sink=SLOTS, offset=OFFSETS, size=LENGTHS)
    def sendfile(self, source: int, sink: int, offset: int, size: int) -> None:
        self.both(ROOT, "sendfile", source, sink, offset, size)

    @rule(slot=SLOTS)
    def fsync(self, slot: int) -> None:
        self.both(ROOT, "fsync", slot)

    @rule(slot=SLOTS)
    def fstat(self, slot: int) -> None:
        self.both(ROOT, "fstat", slot)

    @rule(actor=ACTORS, slot=SLOTS, mode=MODES)
    def fchmod(self, actor: Actor, slot: int, mode: int) -> None:
        self.both(actor, "fchmod", slot, mode)

    @rule(actor=ACTORS, slot=SLOTS, uid=UIDS, gid=GIDS)
    def fchown(self, actor: Actor, slot: int, uid: int, gid: int) -> None:
        self.both(actor, "fchown", slot, uid, gid)

    @rule(slot=SLOTS, offset=OFFSETS, data=DATA, shared=st.booleans())
    def map(self, slot: int, offset: int, data: bytes, shared: bool) -> None:
        self.both(ROOT, "map", slot, offset, data, shared)

    # -- names --------------------------------------------------------------------------------------------------

    @rule(actor=ACTORS, path=PATHS, mode=MODES)
    def mkdir(self, actor: Actor, path: list[bytes], mode: int) -> None:
        self.both(actor, "mkdir", path, mode)

    @rule(actor=ACTORS, path=PATHS)
    def rmdir(self, actor: Actor, path: list[bytes]) -> None:
        self.both(actor, "rmdir", path)

    @rule(actor=ACTORS, path=PATHS)
    def unlink(self, actor: Actor, path: list[bytes]) -> None:
        self.both(actor, "unlink", path)

    @rule(
        actor=ACTORS,
        path=PATHS,
        kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK]),
        mode=MODES,
    )
    def mknod(self, actor: Actor, path: list[bytes], kind: int, mode: int) -> None:
        device = os.makedev(300, 77_777) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        self.both(actor, "mknod", path, kind | mode, device)

    @rule(actor=ACTORS, text=st.sampled_from([b"a", b"b/a", b"../a", b".", b"\xff\xfe", b"z" * 4000]), path=PATHS)
    def symlink(self, actor: Actor, text: bytes, path: list[bytes]) -> None:
        self.both(actor, "symlink", text, path)

    @rule(path=PATHS)
    def readlink(self, path: list[bytes]) -> None:
        self.both(ROOT, "readlink", path)

    @rule(actor=ACTORS, path=PATHS, other=PATHS, follow=st.booleans())
    def link(self, actor: Actor, path: list[bytes], other: list[bytes], follow: bool) -> None:
        self.both(actor, "link", path, other, follow)

    @rule(
        actor=ACTORS,
        path=PATHS,
        other=PATHS,
        flags=st.sampled_from([0, 0, 0, NOREPLACE, EXCHANGE, WHITEOUT, WHITEOUT | NOREPLACE, NOREPLACE | EXCHANGE]),
    )
    def rename(self, actor: Actor, path: list[bytes], other: list[bytes], flags: int) -> None:
        self.both(actor, "rename", path, other, flags)

    @rule(actor=ACTORS, path=PATHS)
    def listdir(self, actor: Actor, path: list[bytes]) -> None:
        self.both(actor, "listdir", path)

    # -- attributes ---------------------------------------------------------------------------------------------

    @rule(actor=ACTORS, path=PATHS, follow=st.booleans())
    def stat(self, actor: Actor, path: list[bytes], follow: bool) -> None:
        self.both(actor, "stat", path, follow)

    @rule(actor=ACTORS, path=PATHS, mode=st.integers(0, 7))
    def access(self, actor: Actor, path: list[bytes], mode: int) -> None:
        self.both(actor, "access", path, mode)

    @rule(actor=ACTORS, path=PATHS, mode=MODES)
    def chmod(self, actor: Actor, path: list[bytes], mode: int) -> None:
        self.both(actor, "chmod", path, mode)

    @rule(actor=ACTORS, path=PATHS, uid=UIDS, gid=GIDS, follow=st.booleans())
    def chown(self, actor: Actor, path: list[bytes], uid: int, gid: int, follow: bool) -> None:
        self.both(actor, "chown", path, uid, gid, follow)

    @rule(actor=ACTORS, path=PATHS, atime=TIMES, mtime=TIMES, follow=st.booleans())
    def utimens(self, actor: Actor, path: list[bytes], atime: int | str, mtime: int | str, follow: bool) -> None:
        self.both(actor, "utimens", path, atime, mtime, follow)

    @rule(actor=ACTORS, path=PATHS, length=LENGTHS)
    def truncate(self, actor: Actor, path: list[bytes], length: int) -> None:
        self.both(actor, "truncate", path, length)

    @rule(actor=ACTORS, path=PATHS, name=ATTRIBUTES, value=st.binary(max_size=30), flags=st.integers(0, 2))
    def setxattr(self, actor: Actor, path: list[bytes], name: bytes, value: bytes, flags: int) -> None:
        self.both(actor, "setxattr", path, name, value, flags)

    @rule(actor=ACTORS, path=PATHS, name=ATTRIBUTES)
    def getxattr(self, actor: Actor, path: list[bytes], name: bytes) -> None:
        self.both(actor, "getxattr", path, name)

    @rule(actor=ACTORS, path=PATHS)
    def listxattr(self, actor: Actor, path: list[bytes]) -> None:
        self.both(actor, "listxattr", path)

    @rule(actor=ACTORS, path=PATHS, name=ATTRIBUTES)
    def removexattr(self, actor: Actor, path: list[bytes], name: bytes) -> None:
        self.both(actor, "removexattr", path, name)

    # -- the whole ----------------------------------------------------------------------------------------------

    @invariant()
    def same_attributes(self) -> None:
        self.compare(content=False)

    @rule()
    def same_content(self) -> None:
        self.compare(content=True)

    def compare(self, *, content: bool) -> None:
        reference, ours = (world.tree(content=content) for world in self.worlds)
        for path in sorted(reference.keys() | ours.keys()):
            assert reference.get(path) == ours.get(path), path

    def teardown(self) -> None:
        try:
            self.compare(content=True)
            for world in self.worlds:
                world.close_all()
            self.compare(content=True)
        finally:
            for world, top in zip(self.worlds, self.tops, strict=True):
                with contextlib.suppress(OSError):
                    world.close_all()
                shutil.rmtree(top)


@pytest.fixture
def open_path() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@pytest.fixture
def reference(open_path: Path) -> Iterator[Path]:
    with ext4(open_path) as where:
        yield where


@pytest.fixture(params=["redis", "sqlite3"])
def volume(request: pytest.FixtureRequest, open_path: Path) -> Iterator[Volume]:
    with contextlib.ExitStack() as stack:
        url = f"sqlite3://{open_path}/meta.db"
        if request.param == "redis":
            url = stack.enter_context(redis_server(open_path)) + "/1"
        volume = Volume(url, open_path / "bucket").format("--trash-days", "0")
        yield volume
        check_by_real(volume)


@pytest.mark.parametrize("options", [(), ("-o", "writeback_cache")], ids=["written-through", "written-back"])
def test_like_ext4(volume: Volume, reference: Path, open_path: Path, options: tuple[str, ...]) -> None:
    umask = os.umask(0o022)
    try:
        with mounted(volume, open_path / "mnt", "--enable-xattr", "--skip-dir-mtime", "0s", *options) as where:
            machine = type("Sided", (Machine,), {"places": (reference, where)})
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    derandomize="JFS_MACHINE_EXAMPLES" not in os.environ,
                    database=None,
                    suppress_health_check=[
                        HealthCheck.too_slow,
                        HealthCheck.filter_too_much,
                        HealthCheck.data_too_large,
                    ],
                ),
            )
    finally:
        os.umask(umask)
