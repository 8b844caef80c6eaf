"""Advisory locks through real mounts of the kernel host: flock, fcntl (POSIX and open-file-description) between processes, between
two mounts, and between this client and the real one; waits, interrupts, closing, death."""

import contextlib
import fcntl
import mmap
import multiprocessing
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import Mounted, Volume, eventually, mounted, really_mounted, redis_server, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

FAST = ("--heartbeat", "1")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["redis", "sqlite3"])
def volume(request: pytest.FixtureRequest, redis: str, tmp_path: Path) -> Volume:
    address = f"sqlite3://{tmp_path}/meta.db"
    if request.param == "redis":
        run("redis-cli", "-p", redis.rpartition(":")[2], "flushall")
        address = f"{redis}/1"
    return Volume(address, tmp_path / "bucket").format("--trash-days", "0")


@pytest.fixture(scope="module", params=["redis", "sqlite3"])
def mounts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two mounts of one volume, for all tests that leave them as they are."""
    folder = tmp_path_factory.mktemp("locks")
    with contextlib.ExitStack() as stack:
        address = f"sqlite3://{folder}/meta.db"
        if request.param == "redis":
            address = stack.enter_context(redis_server(folder)) + "/1"
        volume = Volume(address, folder / "bucket").format("--trash-days", "0")
        one, two = (stack.enter_context(mounted(volume, folder / name, *FAST)) for name in ("one", "two"))
        yield one, two


@pytest.fixture
def two(mounts: tuple[Path, Path], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A file of ten bytes through both mounts."""
    name = re.sub(r"\W", "_", request.node.name)
    one, other = (mount / name for mount in mounts)
    one.write_bytes(b"0123456789")
    eventually(other.exists, "the other mount sees the file")
    return one, other


LOCKER = """
import fcntl, os, struct, sys
path, how, start, length = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fd = os.open(path, os.O_RDWR)
if how[0] == "f":
    fcntl.flock(fd, {"fR": fcntl.LOCK_SH, "fW": fcntl.LOCK_EX}[how])
elif how[0] == "o":
    kind = {"oR": fcntl.F_RDLCK, "oW": fcntl.F_WRLCK}[how]
    fcntl.fcntl(fd, 38, struct.pack("hhqqi4x", kind, 0, start, length, 0))
else:
    fcntl.lockf(fd, {"pR": fcntl.LOCK_SH, "pW": fcntl.LOCK_EX}[how], length, start)
print("locked", flush=True)
sys.stdin.read(1)
"""


@contextlib.contextmanager
def locker(path: Path, how: str, start: int = 0, length: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock of *path* (f flock, p POSIX, o open file description; R or W) until the end."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(path), how, str(start), str(length)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def can(path: Path, how: str, start: int = 0, length: int = 0) -> bool:
    """Whether this process could have the lock now."""
    fd = os.open(path, os.O_RDWR)
    try:
        if how[0] == "f":
            fcntl.flock(fd, (fcntl.LOCK_SH if how == "fR" else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        else:
            fcntl.lockf(fd, (fcntl.LOCK_SH if how == "pR" else fcntl.LOCK_EX) | fcntl.LOCK_NB, length, start)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@pytest.mark.parametrize("kind", ["f", "p"])
def test_locks_hold_in_the_mount_and_across_mounts(two: tuple[Path, Path], kind: str) -> None:
    one, other = two
    with locker(one, kind + "W"):
        for path in two:
            assert not can(path, kind + "W")
            assert not can(path, kind + "R")
    for path in two:  # a killed process' descriptors are closed
        eventually(lambda path=path: can(path, kind + "W"), "the lock is given back")
    with locker(other, kind + "R"):
        for path in two:
            assert can(path, kind + "R")
            assert not can(path, kind + "W")


def test_ranges_and_who_holds_them(two: tuple[Path, Path]) -> None:
    one, other = two
    with locker(one, "pW", 2, 3) as process:
        for path in two:
            assert can(path, "pW", 0, 2)
            assert can(path, "pW", 5, 0)
            assert not can(path, "pW", 4, 1)
        for path, pid in ((one, process.pid), (other, 0)):
            with open(path, "r+b") as file:
                asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
                kind, _, start, length, holder = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
                assert (kind, start, length, holder) == (fcntl.F_WRLCK, 2, 3, pid)
    with open(other, "r+b") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        assert struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] == fcntl.F_UNLCK


def test_open_file_description_locks_are_closed_with_their_file(two: tuple[Path, Path]) -> None:
    one, other = two
    fd, again = os.open(one, os.O_RDWR), os.open(one, os.O_RDWR)
    record = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 4, 0)
    fcntl.fcntl(fd, 37, record)  # F_OFD_SETLK
    with pytest.raises(BlockingIOError):
        fcntl.fcntl(again, 37, record)
    copy = os.dup(fd)
    os.close(fd)
    assert not can(other, "pW")
    os.close(copy)
    os.close(again)
    eventually(lambda: can(other, "pW"), "the lock went with the last descriptor")


def test_closing_any_descriptor_gives_back_posix_locks(two: tuple[Path, Path]) -> None:
    one, other = two
    fd = os.open(one, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    assert not can(other, "pW")
    os.close(os.open(one, os.O_RDONLY))
    assert can(other, "pW")
    os.close(fd)


def test_a_flock_is_inherited_and_goes_with_the_last_descriptor(two: tuple[Path, Path]) -> None:
    one, other = two
    fd = os.open(one, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    copy = os.dup(fd)
    os.close(fd)
    assert not can(other, "fR")
    fcntl.flock(copy, fcntl.LOCK_UN)
    assert can(other, "fW")
    os.close(copy)


@pytest.mark.parametrize("kind", ["f", "p", "o"])
@pytest.mark.parametrize("across", [False, True])
def test_a_waiter_gets_the_lock(two: tuple[Path, Path], kind: str, across: bool) -> None:
    fd = os.open(two[0], os.O_RDWR)
    if kind == "f":
        fcntl.flock(fd, fcntl.LOCK_EX)
    else:
        fcntl.lockf(fd, fcntl.LOCK_EX)
    got = threading.Event()

    def wait() -> None:
        with locker(two[across], kind + "W"):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(1.0)
    os.close(fd)
    assert got.wait(20)
    thread.join()


def test_a_wait_is_interrupted(two: tuple[Path, Path]) -> None:
    class Interrupted(Exception):
        pass

    def raise_it(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        with locker(two[1], "pW"), locker(two[1], "fW"), open(two[0], "r+b") as file:
            for lock in (fcntl.lockf, fcntl.flock):
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                with pytest.raises(Interrupted):
                    lock(file, fcntl.LOCK_EX)
    finally:
        signal.signal(signal.SIGALRM, before)
    for kind in "pf":
        eventually(lambda kind=kind: can(two[0], kind + "W"), "nothing is left of the wait")


def test_a_killed_waiter_leaves_nothing(two: tuple[Path, Path]) -> None:
    with locker(two[0], "fW"):
        waiter = subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(two[0]), "fW", "0", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        time.sleep(0.5)
        waiter.kill()
        waiter.communicate(timeout=20)
    eventually(lambda: can(two[1], "fW"), "nothing is left of the killed waiter")


def _count(path: str, turns: int) -> None:
    for turn in range(turns):
        fd = os.open(path, os.O_RDWR)
        if turn % 2:
            fcntl.flock(fd, fcntl.LOCK_EX)
            fcntl.lockf(fd, fcntl.LOCK_EX)
        else:
            fcntl.lockf(fd, fcntl.LOCK_EX)
        number = int(os.pread(fd, 10, 0))
        os.pwrite(fd, b"%010d" % (number + 1), 0)
        os.close(fd)


def test_a_counter_under_locks_of_processes_on_two_mounts(two: tuple[Path, Path]) -> None:
    for path in two:
        os.truncate(path, 10)
    two[0].write_bytes(b"0" * 10)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(str(two[n % 2]), 25)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
        assert worker.exitcode == 0
    fd = os.open(two[0], os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    assert os.pread(fd, 10, 0) == b"%010d" % 100
    os.close(fd)


def test_one_descriptor_kept_open_sees_what_others_wrote_under_the_lock(two: tuple[Path, Path]) -> None:
    fds = [os.open(path, os.O_RDWR) for path in two]
    for turn in range(20):
        for fd in fds:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            assert os.pread(fd, 10, 0) in (b"0123456789", b"%010d" % turn, b"%010d" % (turn - 1))
            if turn and fd is fds[0]:
                assert os.pread(fd, 10, 0) == b"%010d" % (turn - 1)
            os.pwrite(fd, b"%010d" % turn, 0)
            fcntl.lockf(fd, fcntl.LOCK_UN)
    for fd in fds:
        os.close(fd)


def test_what_is_appended_under_a_lock_goes_to_the_end(two: tuple[Path, Path]) -> None:
    fds = [os.open(path, os.O_WRONLY | os.O_APPEND) for path in two]
    for turn in range(10):
        for fd in fds:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, b"%d " % turn)
            fcntl.flock(fd, fcntl.LOCK_UN)
    for fd in fds:
        os.close(fd)
    wanted = b"0123456789" + b"".join(b"%d " % turn * 2 for turn in range(10))
    for path in two:
        assert path.read_bytes() == wanted


def test_what_is_appended_by_turns_goes_to_the_end(two: tuple[Path, Path]) -> None:
    for turn in range(10):
        for path in two:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(fd, b"%d " % turn)
            os.close(fd)
    wanted = b"0123456789" + b"".join(b"%d " % turn * 2 for turn in range(10))
    for path in two:
        assert path.read_bytes() == wanted


def test_a_mapping_of_a_file_opened_for_appending_writes_in_place(two: tuple[Path, Path]) -> None:
    fd = os.open(two[0], os.O_RDWR | os.O_APPEND)
    with mmap.mmap(fd, 0) as mapped:
        mapped[2:4] = b"ab"
        mapped.flush()
    os.close(fd)
    assert two[0].read_bytes() == b"01ab456789"


def test_a_descriptor_that_appends_no_more_writes_in_place(two: tuple[Path, Path]) -> None:
    fd = os.open(two[0], os.O_RDWR | os.O_APPEND)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"ab", 2)
    os.close(fd)
    assert two[1].read_bytes() == b"01ab456789"


def test_the_locks_of_a_killed_mount_are_cleared(volume: Volume, tmp_path: Path) -> None:
    dying = Mounted(volume, tmp_path / "dying", *FAST)
    with mounted(volume, tmp_path / "other", *FAST) as other:
        (dying.where / "f").write_bytes(b"x")
        fd = os.open(dying.where / "f", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_SH)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        assert not can(other / "f", "fW")
        dying.kill()
        with contextlib.suppress(OSError):
            os.close(fd)
        eventually(lambda: can(other / "f", "fW") and can(other / "f", "pW"), "the dead session is cleared", 30)


def test_a_read_only_mount_has_local_locks(volume: Volume, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "one") as one:
        (one / "f").write_bytes(b"x")
    with mounted(volume, tmp_path / "two", "--read-only") as two:
        fds = [os.open(two / "f", os.O_RDONLY) for _ in range(2)]
        fcntl.flock(fds[0], fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fds[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("kind", ["f", "p"])
def test_the_real_client_and_we_respect_each_others_locks(volume: Volume, tmp_path: Path, kind: str) -> None:
    with (
        mounted(volume, tmp_path / "ours", *FAST) as ours,
        really_mounted(volume, tmp_path / "theirs", "--heartbeat", "1") as theirs,
    ):
        (ours / "f").write_bytes(b"0123456789")
        eventually((theirs / "f").exists, "the real client sees the file")
        here, there = ours / "f", theirs / "f"
        for holder, asker in ((here, there), (there, here)):
            with locker(holder, kind + "W"):
                assert not can(asker, kind + "R")
            eventually(lambda asker=asker: can(asker, kind + "W"), "the lock is given back")
            with locker(holder, kind + "R"):
                assert can(asker, kind + "R")
                assert not can(asker, kind + "W")
            eventually(lambda asker=asker: can(asker, kind + "W"), "the lock is given back")
            got = threading.Event()

            def wait(asker: Path = asker, got: threading.Event = got) -> None:
                with locker(asker, kind + "W"):
                    got.set()

            with locker(holder, kind + "W"):
                thread = threading.Thread(target=wait)
                thread.start()
                assert not got.wait(0.5)
            assert got.wait(20)
            thread.join()
            eventually(lambda holder=holder: can(holder, kind + "W"), "the lock is given back")
        if kind == "p":
            with locker(there, "pW", 3, 2):
                assert can(here, "pW", 0, 3)
                assert not can(here, "pR", 4, 4)
