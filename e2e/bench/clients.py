"""The contestants: each formats a volume once and mounts it afresh when asked. All are stopped with the benchmark.

A contestant runs in the foreground as our child, so that its CPU seconds and memory are those of its process tree.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from e2e.bench.servers import Seaweed, keys

BIN = Path(sys.executable).parent


class PlainDisk:
    """A directory of the disk that holds the others' objects: what the machine gives without any client."""

    name = "plain disk"

    def __init__(self, scratch: Path) -> None:
        self.root = scratch / "disk" / "root"
        self.root.mkdir(parents=True)

    def mount(self, options: Sequence[str] = ()) -> None:
        """Nothing to do; the kernel's caches are the benchmark's to drop."""

    def unmount(self) -> None:
        """Nothing to do."""

    def cpu_seconds(self) -> float:
        return 0.0

    def forget_peak(self) -> None:
        """Nothing to do."""

    def peak_rss(self) -> int:
        return 0


class Mounted:
    """A client that mounts *meta* on its own directory with the given commands; objects in a directory, or with *s3* on that server."""

    def __init__(
        self,
        name: str,
        scratch: Path,
        program: str,
        meta: str,
        volume: str,
        options: list[str],
        s3: Seaweed | None = None,
    ) -> None:
        self.name = name
        self.root = scratch / volume / "root"
        self.root.mkdir(parents=True)
        self._log = scratch / f"{volume}.log"
        self._cache = scratch / f"{volume}.cache"
        self._process: subprocess.Popen[bytes] | None = None
        self._mounted_with: tuple[str, ...] = ()
        kind, bucket = ("file", f"{scratch}/{volume}.objects/") if s3 is None else ("s3", s3.bucket(volume))
        formatted = subprocess.run(
            [BIN / program, "format", "--storage", kind, "--bucket", bucket, meta, volume],
            env=keys() if s3 is not None else None,
            capture_output=True,
            text=True,
            check=False,
        )
        if formatted.returncode:
            raise RuntimeError(f"{name} did not format its volume: {formatted.stderr[-2000:]}")
        self._command = [str(part) for part in (BIN / program, "mount", *options, "--cache-dir", self._cache)]
        self._volume = [meta, str(self.root)]

    def mount(self, options: Sequence[str] = ()) -> None:
        """Mount, unless it is with these options already, and wait until the root answers as inode 1."""
        if self._process is not None and self._mounted_with == tuple(options):
            return
        self.unmount()
        shutil.rmtree(self._cache, ignore_errors=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *options, *self._volume], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + 60
        while os.stat(self.root).st_ino != 1:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not mount; its log: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)
        self._mounted_with = tuple(options)

    def unmount(self) -> None:
        """Unmount and wait for the end, so that everything is uploaded."""
        if self._process is None:
            return
        deadline = time.monotonic() + 20
        while self._process.poll() is None or os.path.ismount(self.root):
            ended = subprocess.run(["umount", self.root], capture_output=True, text=True, check=False)
            if not ended.returncode:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} cannot be unmounted: {ended.stderr}")
            time.sleep(0.2)  # whoever looks at all mounts of the machine keeps it busy for a moment
        process, self._process = self._process, None
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            # A mount namespace that was copied meanwhile (a container that starts) still has the mount.
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise

    def cpu_seconds(self) -> float:
        """User and system seconds of the process tree so far, by the nanosecond clocks of its processes."""
        return sum(
            time.clock_gettime(~pid << 3 | 2) for pid in self._tree()
        )  # clockid of a process: <linux/posix-timers.h>

    def rss(self) -> int:
        """Bytes resident now."""
        return sum(self._status(pid, "VmRSS") for pid in self._tree())

    def forget_peak(self) -> None:
        """The next `peak_rss` counts from now on (proc(5), clear_refs)."""
        for pid in self._tree():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_rss(self) -> int:
        """The largest resident size in bytes since it was mounted or told to forget."""
        return sum(self._status(pid, "VmHWM") for pid in self._tree())

    def _tree(self) -> Iterator[int]:
        waiting = [self._process.pid] if self._process else []
        while waiting:
            pid = waiting.pop()
            yield pid
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]

    @staticmethod
    def _status(pid: int, field: str) -> int:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        return 0


def ours(scratch: Path, meta: str, options: list[str], s3: Seaweed | None = None, volume: str = "ours") -> Mounted:
    """Our client, in the foreground."""
    return Mounted(volume, scratch, "jfs", meta, volume, ["--foreground", *options], s3)


def juicefs(scratch: Path, meta: str, s3: Seaweed | None = None) -> Mounted:
    """The real JuiceFS with its defaults, in the foreground; no reports to the outside, no metadata backups."""
    options = ["--no-usage-report", "--backup-meta", "0", "--metrics", "127.0.0.1:0"]
    return Mounted("JuiceFS 1.4.2", scratch, "juicefs", meta, "juicefs", options, s3)
