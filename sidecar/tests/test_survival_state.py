"""What outlives a process: tables, arena, snapshots. A death is a second opening of the same files without a closing of the first."""

import errno
import os
from pathlib import Path

import pytest
from jfs.errors import ConfigError, FsError
from jfs.survival.arena import Arena
from jfs.survival.attributes import Set, SetAttributes
from jfs.survival.handle_table import DIRECTORY, FILE, HandleTable
from jfs.survival.journal import RESENT, Intention, Journal
from jfs.survival.records import Records
from jfs.survival.snapshots import Snapshots
from jfs.survival.state_directory import StateDirectory

BLOCK = 4 << 20


def test_handles_are_found_again_and_numbers_are_not_reused(tmp_path: Path) -> None:
    table = HandleTable(str(tmp_path / "handles"))
    one = table.take(FILE, 7, os.O_RDWR, read_only=False, request=12)
    other = table.take(FILE, 8, os.O_RDONLY, read_only=True)
    directory = table.take(DIRECTORY, 9, 0, read_only=True)
    assert (one & 1, other & 1, directory & 1) == (0, 1, 1)
    for owner in range(40):
        table.add_owner(one, 1 << 60 | owner)
    table.free(other)
    again = table.take(FILE, 10, os.O_WRONLY, read_only=False)
    assert again not in (one, other)
    table.add_owner(other, 5)  # a number of the past: nothing happens
    table.owner = b"somebody's"
    successor = HandleTable(str(tmp_path / "handles"))
    found = {handle.fh: handle for handle in successor.handles()}
    assert found.keys() == {one, directory, again}
    assert (found[one].ino, found[one].flags, found[one].request) == (7, os.O_RDWR, 12)
    assert sorted(found[one].owners) == [1 << 60 | owner for owner in range(40)]
    assert successor.owner.startswith(b"somebody's")
    successor.free(one)
    assert {handle.fh for handle in successor.handles()} == {directory, again}
    table.close()
    successor.close()


def test_a_table_grows(tmp_path: Path) -> None:
    for table in (HandleTable(), HandleTable(str(tmp_path / "handles"))):
        numbers = [table.take(FILE, ino, 0, read_only=True) for ino in range(1, 1000)]
        assert len(set(numbers)) == 999
        assert sorted(handle.ino for handle in table.handles()) == list(range(1, 1000))
        table.clear()
        assert table.handles() == []
        table.close()


def test_a_table_that_cannot_grow_is_an_error_not_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(1024, str(tmp_path / "records"))
    for _ in range(4):
        records.take()

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FsError) as raised:
        records.take()
    assert raised.value.errno == errno.ENOSPC
    records.close()


def test_a_file_of_another_layout_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "records"
    records = Records(64, str(path))
    slot = records.take()
    records.buffer[records.at(slot)] = 1
    records.close()
    assert Records(64, str(path)).used(slot)
    assert not Records(32, str(path)).used(slot)
    path.write_bytes(b"rubbish" * 1000)
    assert not Records(64, str(path)).used(0)


def test_intentions(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    journal = Journal(path)
    answered, under_way, begun = (journal.begin(number) for number in (2, 4, 6))
    answered.intend(100)
    under_way.intend(100)
    under_way.intend(101, 7)  # a second attempt of the transaction
    answered.end()
    assert not begun.resent
    successor = Journal(path)
    assert successor.begin(2 | RESENT).intention is None
    assert successor.begin(6 | RESENT).intention is None
    repeated = successor.begin(4 | RESENT)
    assert (repeated.number, repeated.resent, repeated.intention) == (4, True, Intention(101, 7))
    repeated.intend(102)
    third = Journal(path)
    assert third.begin(4 | RESENT).intention == Intention(102, 0)
    fourth = Journal(path)
    fourth.settled()  # the kernel repeated nothing: it had been answered
    assert Journal(path).begin(4 | RESENT).intention is None


def test_set_attributes(tmp_path: Path) -> None:
    path = str(tmp_path / "attributes")
    kept = SetAttributes(path)
    kept.put(Set(5, b"before", b"after", False))
    kept.put(Set(5, b"before", b"later", True))
    kept.put(Set(6, b"x", b"y", False))
    kept.drop(6)
    successor = SetAttributes(path)
    assert successor.left() == [Set(5, b"before", b"later", True)]
    successor.drop(5)
    assert SetAttributes(path).left() == []


def test_of_attributes_kept_twice_the_later_count(tmp_path: Path) -> None:
    """A kill between the two stores of `put` leaves both; the former must not come back when the later is dropped."""
    path = tmp_path / "attributes"
    kept = SetAttributes(str(path))
    for turn in range(3):
        kept.put(Set(5, b"before", b"%d" % turn, False))
        earlier = path.read_bytes()
        kept.put(Set(5, b"before", b"%d" % (turn + 1), False))
        later = path.read_bytes()
        both = bytes(other or one for one, other in zip(earlier, later, strict=True))  # a freed slot keeps its body
        path.write_bytes(both)
        successor = SetAttributes(str(path))
        assert successor.left() == [Set(5, b"before", b"%d" % (turn + 1), False)]
        successor.drop(5)
        assert SetAttributes(str(path)).left() == []
        path.write_bytes(later)
        kept = SetAttributes(str(path))


def test_the_arena_gives_back_what_was_in_it(tmp_path: Path) -> None:
    arena = Arena(str(tmp_path / "data"), BLOCK)
    whole, small, larger = arena.take(BLOCK), arena.take(64 << 10), arena.take(256 << 10)
    assert whole is not None
    assert small is not None
    assert larger is not None
    one, other = arena.keep(5, 0, 0, 0), arena.keep(6, 3, 100, 2)
    empty = arena.keep(9, 0, 0, 0)
    assert one is not None
    assert other is not None
    assert empty is not None
    whole[:] = b"w" * BLOCK
    one.bind(0, whole)
    one.identified(77)
    one.committing()
    one.wrote(BLOCK, 1, 0, 0)
    small[:5] = b"small"
    other.bind(0, small)
    other.wrote(5, 2, 1234, 999)
    larger[:6] = b"larger"  # the buffer grows: both are there for a moment
    other.bind(0, larger)
    other.wrote(6, 3, 1234, 999)
    successor = Arena(str(tmp_path / "data"), BLOCK)
    left = successor.left()
    assert [(one.ino, one.indx, one.start, one.length, one.id) for one in left] == [
        (5, 0, 0, BLOCK, 77),
        (6, 3, 100, 6, 0),
    ]
    assert [one.maybe_committed for one in left] == [True, False]
    assert (left[1].request, left[1].request_at, left[1].tier, left[1].mtime_ns) == (1234, 999, 2, 3)
    assert bytes(left[0].blocks[0]) == b"w" * BLOCK
    assert bytes(left[1].blocks[0][:6]) == b"larger"
    # What it took over is not given out again, and comes back when it is given back.
    taken = [successor.take(BLOCK) for _ in range(3)]
    assert all(view is not None and view[0] != ord("w") for view in taken)
    for slice in left:
        slice.kept.end()
        for view in slice.blocks.values():
            slice.kept.unbind(view)
            assert successor.give(view)
    third = Arena(str(tmp_path / "data"), BLOCK)
    assert third.left() == []


def test_buffers_of_all_sizes_share_the_space(tmp_path: Path) -> None:
    arena = Arena(str(tmp_path / "data"), BLOCK)
    views = [arena.take(64 << 10) for _ in range(256)]  # 16 MiB
    assert arena.capacity == 16 << 20
    for view in views:
        assert view is not None
        assert arena.give(view)
    blocks = [arena.take(BLOCK) for _ in range(4)]
    assert arena.capacity == 16 << 20
    assert not arena.shrink()
    for view in blocks:
        assert view is not None
        view[:] = b"x" * BLOCK
        arena.give(view)
    path = tmp_path / "data" / "data"
    before = path.stat().st_blocks
    assert arena.shrink()
    assert path.stat().st_blocks < before / 2
    assert arena.take(BLOCK) is not None
    arena.close(keep=False)
    assert not (tmp_path / "data").exists()


def test_a_full_disk_gives_no_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(str(tmp_path / "data"), BLOCK)

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert arena.take(BLOCK) is None
    assert arena.capacity == 0
    arena.close(keep=True)


def test_snapshots_end_with_the_last_whole_name(tmp_path: Path) -> None:
    snapshots = Snapshots(str(tmp_path / "listings"))
    snapshot = snapshots.of(5)
    assert snapshot is not None
    assert snapshot.names() == []
    snapshot.add([b"a", b"b"])
    snapshot.add([b"c"])
    with open(tmp_path / "listings" / "5", "ab") as file:
        file.write(b"cut of")
    successor = Snapshots(str(tmp_path / "listings")).of(5)
    assert successor is not None
    assert successor.names() == [b"a", b"b", b"c"]
    snapshot.clear()
    assert successor.names() == []
    assert Snapshots(None).of(5) is None


def test_a_state_directory_is_for_one_process_and_one_volume(tmp_path: Path) -> None:
    state = StateDirectory(str(tmp_path / "state"))
    assert state.session("uuid") == 0
    state.begin("uuid", 42)
    with pytest.raises(ConfigError, match="in use"):
        StateDirectory(str(tmp_path / "state"))
    state.close(keep=True)
    successor = StateDirectory(str(tmp_path / "state"))
    assert (successor.session("uuid"), successor.session("another")) == (42, 0)
    successor.arena(BLOCK)
    successor.close(keep=False)
    assert not (tmp_path / "state").exists()
    in_memory = StateDirectory()
    assert in_memory.arena(BLOCK) is None
    in_memory.close(keep=True)
