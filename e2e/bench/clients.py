"""The contestants: each formats a volume once and mounts it afresh when asked. All are stopped with the benchmark.

A contestant runs in the foreground as our child, so that its CPU seconds and memory are those of its process tree.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BIN = Path(sys.executable).parent
TICKS = os.sysconf("SC_CLK_TCK")


class PlainDisk:
    """A directory of the disk that holds the others' objects: what the machine gives without any client."""

    name = "plain disk"

    def __init__(self, scratch: Path) -> None:
        self.root = scratch / "disk" / "root"
        self.root.mkdir(parents=True)

    def mount(self) -> None:
        """Nothing to do; the kernel's caches are the benchmark's to drop."""

    def unmount(self) -> None:
        """Nothing to do."""

    def cpu_seconds(self) -> float:
        return 0.0

    def peak_rss(self) -> int:
        return 0


class Mounted:
    """A client that mounts *meta* on its own directory with the given commands."""

    def __init__(self, name: str, scratch: Path, program: str, meta: str, volume: str, options: list[str]) -> None:
        self.name = name
        self.root = scratch / volume / "root"
        self.root.mkdir(parents=True)
        self._log = scratch / f"{volume}.log"
        self._cache = scratch / f"{volume}.cache"
        self._peak = 0
        self._process: subprocess.Popen[bytes] | None = None
        bucket = scratch / f"{volume}.objects"
        subprocess.run(
            [BIN / program, "format", "--storage", "file", "--bucket", f"{bucket}/", meta, volume],
            check=True,
            capture_output=True,
        )
        self._command = [
            str(part) for part in (BIN / program, "mount", *options, "--cache-dir", self._cache, meta, self.root)
        ]

    def mount(self) -> None:
        """Mount and wait until the root answers as inode 1."""
        shutil.rmtree(self._cache, ignore_errors=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while os.stat(self.root).st_ino != 1:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not mount; its log: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def unmount(self) -> None:
        """Unmount and wait for the end, so that everything is uploaded; the peak of memory is kept."""
        if self._process is None:
            return
        self._peak = max(self._peak, self.peak_rss())
        subprocess.run(["umount", self.root], check=True)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            raise
        self._process = None

    def cpu_seconds(self) -> float:
        """User and system seconds of the process tree so far."""
        total = 0
        for pid in self._tree():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def rss(self) -> int:
        """Bytes resident now."""
        return sum(self._status(pid, "VmRSS") for pid in self._tree())

    def peak_rss(self) -> int:
        """The largest resident size in bytes since the first mount."""
        return max(self._peak, sum(self._status(pid, "VmHWM") for pid in self._tree()))

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


def ours(scratch: Path, meta: str, options: list[str]) -> Mounted:
    """Our client, in the foreground."""
    return Mounted("ours", scratch, "jfs", meta, "ours", ["--foreground", *options])


def juicefs(scratch: Path, meta: str) -> Mounted:
    """The real JuiceFS with its defaults, in the foreground; no reports to the outside, no metadata backups."""
    options = ["--no-usage-report", "--backup-meta", "0", "--metrics", "127.0.0.1:0"]
    return Mounted("JuiceFS 1.4.2", scratch, "juicefs", meta, "juicefs", options)
