"""A mount whose database or storage fails in each way that they know: what the application is told, that nothing which failed was
acknowledged, and that the same mount goes on when the fault is over."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_rig import KillableRedis
from fault_proxy import FaultProxy
from mount_parts import JFS, Mounted, Volume, check_by_real, eventually, run
from seaweed_server import ACCESS_KEY, SECRET_KEY, SeaweedServer

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
KEYS = {**os.environ, "ACCESS_KEY": ACCESS_KEY, "SECRET_KEY": SECRET_KEY}


def errno_of(call: Callable[[], object]) -> int:
    """What *call* ends with, 0 for success."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def store(path: Path, data: bytes) -> int:
    """Write a file and close it; the errno of the first call that fails."""

    def call() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(fd, data)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)

    return errno_of(call)


class Background:
    """A call in a thread: it may wait as long as it has to."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.number: int | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.number = errno_of(self._call)

    def join(self) -> int:
        self._thread.join(60)
        assert self.number is not None, "it waits for ever"
        return self.number


@contextlib.contextmanager
def mounting(volume: Volume, tmp_path: Path, *options: str) -> Iterator[Path]:
    """A mount that must not end, nor lose a thread of its own, whatever happens."""
    mount = Mounted(volume, tmp_path / "mnt", *options)
    try:
        yield mount.where
        assert mount.process.poll() is None
        assert "Traceback" not in mount.log.read_text(), mount.log.read_text()
    finally:
        mount.kill()


# -- the storage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Volume]:
    """A volume whose objects are in a file system of 4 MiB."""
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(bucket))
    try:
        yield Volume(f"sqlite3://{tmp_path}/meta.db", bucket).format("--trash-days", "0", "--block-size", "256K")
    finally:
        run("umount", "-l", str(bucket))


def test_full_disk(small_disk: Volume, tmp_path: Path) -> None:
    with mounting(small_disk, tmp_path, "--io-retries", "0") as where:
        assert store(where / "kept", b"k" * 1_000_000) == 0
        fd = os.open(where / "big", os.O_RDWR | os.O_CREAT)
        number = errno_of(lambda: [os.write(fd, b"b" * 1_000_000) for _ in range(8)])
        number = number or errno_of(lambda: os.fsync(fd))
        assert number == errno.ENOSPC
        assert store(where / "another", b"a" * 3_500_000) == errno.ENOSPC
        eventually(lambda: errno_of(lambda: os.fsync(fd)) == 0, "each failure is told once")
        os.ftruncate(fd, 0)
        os.unlink(where / "another")
        eventually(lambda: os.statvfs(small_disk.bucket).f_bavail * 4096 > 2_000_000, "truncation gives room")
        os.pwrite(fd, b"c" * 1_000_000, 0)
        os.fsync(fd)
        os.close(fd)
        assert (where / "big").read_bytes() == b"c" * 1_000_000
        assert (where / "kept").read_bytes() == b"k" * 1_000_000
    run(*JFS, "gc", small_disk.url, "--delete", env={**os.environ, "JFS_GC_SKIPPEDTIME": "0"})
    check_by_real(small_disk)


def test_read_only_directory(small_disk: Volume, tmp_path: Path) -> None:
    with mounting(small_disk, tmp_path, "--io-retries", "0") as where:
        assert store(where / "kept", b"k" * 1000) == 0
        run("mount", "-o", "remount,ro", str(small_disk.bucket))
        assert store(where / "new", b"n" * 1000) == errno.EROFS
        assert (where / "kept").read_bytes() == b"k" * 1000
        assert (where / "new").stat().st_size == 0
        run("mount", "-o", "remount,rw", str(small_disk.bucket))
        assert store(where / "new", b"n" * 1000) == 0
        assert (where / "new").read_bytes() == b"n" * 1000


def test_directory_that_goes_and_comes_back(tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--trash-days", "0")
    with mounting(volume, tmp_path, "--io-retries", "0") as where:
        assert store(where / "kept", b"k" * 1000) == 0
        volume.bucket.rename(tmp_path / "elsewhere")
        assert store(where / "new", b"n" * 1000) == errno.EIO
        assert errno_of(lambda: (where / "kept").read_bytes()) == errno.EIO
        assert not volume.bucket.exists()
        (tmp_path / "elsewhere").rename(volume.bucket)
        assert (where / "kept").read_bytes() == b"k" * 1000
        assert store(where / "new", b"n" * 1000) == 0


@pytest.fixture
def s3_volume(tmp_path: Path, seaweed: SeaweedServer) -> Volume:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path, name=f"vol{os.getpid()}-{time.monotonic_ns() % 10**9}")
    options = ["--trash-days", "0", "--block-size", "256K", "--storage", "s3", "--bucket", seaweed.bucket_url]
    run(*JFS, "format", *options, volume.url, volume.name, env=KEYS)
    return volume


def test_bucket_that_may_only_be_read(s3_volume: Volume, tmp_path: Path) -> None:
    with mounting(s3_volume, tmp_path) as where:
        assert store(where / "kept", b"k" * 1000) == 0
    run(*JFS, "config", s3_volume.url, "--access-key", "reader", "--secret-key", "reader-secret", "--force")
    with mounting(s3_volume, tmp_path, "--io-retries", "0") as where:
        assert (where / "kept").read_bytes() == b"k" * 1000
        assert store(where / "new", b"n" * 1000) == errno.EIO
        assert (where / "new").stat().st_size == 0
        assert "check the keys and their rights" in (tmp_path / "mnt.log").read_text()


def test_s3_through_a_bad_network(s3_volume: Volume, seaweed: SeaweedServer, tmp_path: Path) -> None:
    """Every kind of cut at many offsets of requests and answers, while files are written and read: all arrive, and nothing grows."""
    with FaultProxy(seaweed.port) as proxy:
        bucket = seaweed.bucket_url.replace(f":{seaweed.port}/", f":{proxy.port}/")
        options = ("--bucket", bucket, "--get-timeout", "2s", "--put-timeout", "2s", "--buffer-size", "32M")
        mount = Mounted(s3_volume, tmp_path / "mnt", *options)
        try:
            cuts = [
                (0, "reset"),
                (1, "close"),
                (300, "half-close"),
                (2000, "reset"),
                (90_000, "reset"),
                (262_000, "close"),
            ]
            before = None
            for number in range(24):
                count, how = cuts[number % len(cuts)]
                proxy.plan("request" if number % 2 else "answer", "bytes", count, how)  # type: ignore[arg-type]
                data = os.urandom(600_000)
                path = mount.where / f"f{number % 5}"
                path.write_bytes(data)
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.read(fd, 700_000) == data, (number, count, how)
                os.close(fd)
                proxy.no_plan()
                if number == 7:
                    before = used(mount.process.pid)
            proxy.stall()
            stalled = Background(lambda: (mount.where / "late").write_bytes(b"l" * 1000))
            time.sleep(0.5)
            assert stalled.number is None
            proxy.cut()
            proxy.resume()
            assert stalled.join() == 0
            proxy.latency = 0.05
            (mount.where / "slow").write_bytes(b"s" * 600_000)
            proxy.latency = 0
            assert (mount.where / "late").read_bytes() == b"l" * 1000
            assert before is not None
            eventually(lambda: used(mount.process.pid)[0] <= before[0] + 10, "descriptors are given back")
            assert used(mount.process.pid)[1] < before[1] + 40_000, "KiB of memory"
            assert "Traceback" not in mount.log.read_text(), mount.log.read_text()
        finally:
            mount.kill()


def test_a_killed_client_never_hangs_with_its_readers(
    s3_volume: Volume, seaweed: SeaweedServer, tmp_path: Path
) -> None:
    """A reader waits for data, so the kernel has locked its pages; the client learns that another one has changed the file, and is
    killed. A client that waited for the pages then would keep the mount from ending."""
    with FaultProxy(seaweed.port) as proxy:
        bucket = seaweed.bucket_url.replace(f":{seaweed.port}/", f":{proxy.port}/")
        other = Mounted(s3_volume, tmp_path / "other")
        mount = Mounted(s3_volume, tmp_path / "mnt", "--bucket", bucket, "--attr-cache", "0", "--entry-cache", "0")
        reader: subprocess.Popen[bytes] | None = None
        try:
            (other.where / "f").write_bytes(b"1" * 600_000)
            code = "import os\nfd = os.open('f', os.O_RDONLY)\nprint(1, flush=True)\ninput()\nos.read(fd, 600000)"
            reader = subprocess.Popen(
                [sys.executable, "-c", code], cwd=mount.where, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert reader.stdout is not None
            reader.stdout.readline()
            proxy.stall()
            assert reader.stdin is not None
            reader.stdin.write(b"go\n")
            reader.stdin.flush()
            eventually(lambda: state_of(reader.pid) == "D", "it waits for pages")
            (other.where / "f").write_bytes(b"2" * 700_000)
            # Whoever asks for the attributes waits for the locked pages in the kernel: not here.
            looker = subprocess.Popen(["stat", "f"], cwd=mount.where, stdout=subprocess.DEVNULL)
            eventually(lambda: state_of(looker.pid) in "DZ", "the change is seen")
            mount.process.kill()
            mount.process.wait(timeout=15)
            with contextlib.suppress(subprocess.TimeoutExpired):
                reader.wait(timeout=15)
            assert reader.returncode not in (None, 0), "the reader hangs"
            looker.wait(timeout=15)
        finally:
            run("umount", "-f", str(mount.where), check=False)
            if reader is not None:
                reader.kill()
                reader.communicate()
            mount.kill()
            other.kill()


def state_of(pid: int) -> str:
    """As ps shows it: S, D …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def used(pid: int) -> tuple[int, int]:
    """Open descriptors, and resident memory in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return len(os.listdir(f"/proc/{pid}/fd")), int(found[1])


# -- the database -----------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[KillableRedis]:
    server = KillableRedis(tmp_path / "redis", "--enable-protected-configs", "local")
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def volume(redis: KillableRedis, tmp_path: Path) -> Volume:
    return Volume(f"{redis.url}/1", tmp_path / "bucket").format("--trash-days", "0")


@pytest.fixture
def proxied(redis: KillableRedis, tmp_path: Path) -> Iterator[tuple[Volume, FaultProxy]]:
    """A volume in Redis behind a proxy. While a thread holds a file open on a mount that waits, no program can be started: it
    would close the file first."""
    with FaultProxy(redis.port) as proxy:
        yield Volume(f"redis://127.0.0.1:{proxy.port}/1", tmp_path / "bucket").format("--trash-days", "0"), proxy


def test_redis_out_of_memory(redis: KillableRedis, volume: Volume, tmp_path: Path) -> None:
    with mounting(volume, tmp_path) as where:
        assert store(where / "kept", b"k" * 1000) == 0
        (where / "gone").mkdir()
        fd = os.open(where / "open", os.O_WRONLY | os.O_CREAT)
        redis.ask("config", "set", "maxmemory", "1")
        assert errno_of(lambda: (where / "d").mkdir()) == errno.ENOSPC
        os.write(fd, b"o" * 1000)
        assert errno_of(lambda: os.fsync(fd)) == errno.ENOSPC
        assert errno_of(lambda: os.fsync(fd)) == 0
        assert (where / "kept").read_bytes() == b"k" * 1000
        assert set(os.listdir(where)) >= {"kept", "gone", "open"}
        redis.ask("config", "set", "maxmemory", "0")
        os.write(fd, b"o" * 1000)
        os.close(fd)
        (where / "d").mkdir()
    check_by_real(volume)


def test_redis_that_cannot_save(redis: KillableRedis, volume: Volume, tmp_path: Path) -> None:
    """Its disk is full or gone: it refuses all writes (MISCONF)."""
    with mounting(volume, tmp_path) as where:
        assert store(where / "kept", b"k" * 1000) == 0
        lost = tmp_path / "lost"
        lost.mkdir()
        redis.ask("config", "set", "appendonly", "no")
        redis.ask("config", "set", "dir", str(lost))
        lost.rmdir()
        redis.ask("config", "set", "save", "3600 1000000")
        redis.ask("bgsave")
        eventually(lambda: "last_bgsave_status:err" in redis.ask("info", "persistence"), "saving fails")
        assert errno_of(lambda: (where / "d").mkdir()) == errno.EIO
        assert store(where / "kept", b"n" * 1000) == errno.EIO
        redis.ask("config", "set", "dir", str(tmp_path / "redis"))
        redis.ask("config", "set", "save", "")
        redis.ask("bgsave")
        eventually(lambda: "last_bgsave_status:ok" in redis.ask("info", "persistence"), "it saves again")
        (where / "d").mkdir()
        assert store(where / "kept", b"n" * 1000) == 0
        assert (where / "kept").read_bytes() == b"n" * 1000
    run(*JFS, "gc", volume.url, "--delete", env={**os.environ, "JFS_GC_SKIPPEDTIME": "0"})
    check_by_real(volume)


def test_redis_becomes_a_replica_for_a_while(redis: KillableRedis, volume: Volume, tmp_path: Path) -> None:
    with mounting(volume, tmp_path) as where:
        assert store(where / "kept", b"k" * 1000) == 0
        redis.ask("replicaof", "127.0.0.1", "1")
        making = Background(lambda: (where / "d").mkdir())
        storing = Background(lambda: (where / "f").write_bytes(b"f" * 1000))
        assert (where / "kept").read_bytes() == b"k" * 1000
        time.sleep(0.5)
        assert making.number is None
        redis.ask("replicaof", "no", "one")
        assert making.join() == 0
        assert storing.join() == 0
        assert (where / "d").is_dir()
    check_by_real(volume)


def test_redis_that_loads_after_a_restart(volume: Volume, redis: KillableRedis, tmp_path: Path) -> None:
    with mounting(volume, tmp_path) as where:
        for number in range(30):
            (where / f"d{number}").mkdir()
        redis.kill()
        loading = ["--key-load-delay", "3000", "--loading-process-events-interval-bytes", "1024"]
        redis.restart(*loading, wait=False)
        assert store(where / "f", b"f" * 1000) == 0
        assert len(os.listdir(where)) >= 31
        assert (where / "f").read_bytes() == b"f" * 1000
    check_by_real(volume)


def test_redis_away_for_a_while(redis: KillableRedis, proxied: tuple[Volume, FaultProxy], tmp_path: Path) -> None:
    """Requests that wait go on; JFS_OUTAGE makes it longer: then those on names may fail, those on data still go on."""
    away = float(os.environ.get("JFS_OUTAGE", "2"))
    volume, proxy = proxied
    with mounting(volume, tmp_path, "--heartbeat", "1s") as where:
        assert store(where / "kept", b"k" * 1000) == 0
        fd = os.open(where / "open", os.O_RDWR | os.O_CREAT)
        proxy.down()
        os.write(fd, b"o" * 1000)
        waiting = {
            "fsync": Background(lambda: os.fsync(fd)),
            "mkdir": Background(lambda: (where / "d").mkdir()),
            "stat": Background(lambda: os.stat(where / "kept")),
            "listdir": Background(lambda: os.listdir(where)),
        }
        time.sleep(away)
        proxy.accept()
        numbers = {name: call.join() for name, call in waiting.items()}
        assert numbers.pop("fsync") == 0
        assert all(number in (0, errno.EIO) if away > 8 else number == 0 for number in numbers.values()), numbers
        os.close(fd)
        assert (where / "open").read_bytes() == b"o" * 1000
        assert (where / "d").exists() == (numbers["mkdir"] == 0)
        assert store(where / "new", b"n" * 1000) == 0
    check_by_real(volume)


@pytest.mark.parametrize("fault", ["stopped", "refused"])
def test_a_process_that_waits_can_be_killed(proxied: tuple[Volume, FaultProxy], tmp_path: Path, fault: str) -> None:
    volume, proxy = proxied
    with mounting(volume, tmp_path, "--attr-cache", "0", "--entry-cache", "0") as where:
        (where / "f").write_bytes(b"f" * 1000)
        calls = {
            "stat": "os.stat('f')",
            "lookup": "os.path.exists('missing')",
            "read": "os.pread(fd, 10, 0)",
            "fsync": "(os.pwrite(fd, b'x', 0), os.fsync(fd))",
            "close": "(os.pwrite(fd, b'y', 0), os.close(fd))",
            "mkdir": "os.mkdir('d')",
            "rename": "os.rename('f', 'g')",
            "open": "os.open('new', os.O_CREAT | os.O_WRONLY)",
        }
        processes = {}
        for name, call in calls.items():
            code = (
                f"import os\nfd = os.open('f', os.O_RDWR)\nprint('ready', flush=True)\ninput()\n{call}\nprint('done')"
            )
            processes[name] = subprocess.Popen(
                [sys.executable, "-c", code], cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert processes[name].stdout.readline() == b"ready\n"  # type: ignore[union-attr]
        if fault == "stopped":
            proxy.stall()
        else:
            proxy.down()
        for process in processes.values():
            process.stdin.write(b"go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        time.sleep(1)
        for process in processes.values():
            process.send_signal(signal.SIGKILL)
        try:
            left = set(processes)
            deadline = time.monotonic() + 8
            while left and time.monotonic() < deadline:
                left = {name for name in left if processes[name].poll() is None}
                time.sleep(0.05)
            assert not left, "processes that cannot be killed"
        finally:
            proxy.accept()
            proxy.resume()
            for process in processes.values():
                process.communicate()
        assert (where / "f").exists() or (where / "g").exists()
        assert store(where / "new", b"n" * 1000) == 0
