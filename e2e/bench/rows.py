"""What is measured: each row prepares a directory and is then timed on it. Pure file-system work, no client known here.

A cold row is timed on a fresh mount with the kernel's caches dropped, so that the client has to answer everything.
"""

import hashlib
import io
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FILES = 5000
SMALL = 4096
STREAM = 1 << 30
PIECE = 1 << 20
RANDOM_READS = 4000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; *bar* is the least ratio (real client's seconds over ours) that is asked for."""

    name: str
    work: Callable[[Path], None]
    cold: bool
    bar: float


def archive(path: Path) -> None:
    """A tar of 5,000 small files in 100 directories, always the same bytes."""
    chance = random.Random(7)
    with tarfile.open(path, "w") as tar:
        for folder in range(100):
            entry = tarfile.TarInfo(f"tree/d{folder:02}")
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
            tar.addfile(entry)
            for number in range(FILES // 100):
                content = chance.randbytes(chance.randrange(500, 8000))
                entry = tarfile.TarInfo(f"tree/d{folder:02}/f{number:03}.txt")
                entry.size, entry.mode, entry.mtime = len(content), 0o644, 1_700_000_000 + number
                tar.addfile(entry, io.BytesIO(content))


def create(root: Path) -> None:
    folder = root / "small"
    folder.mkdir()
    content = bytes(range(256)) * (SMALL // 256)
    for number in range(FILES):
        with open(folder / f"f{number:05}", "wb", buffering=0) as file:
            file.write(content)


def stat(root: Path) -> None:
    for number in range(FILES):
        os.stat(root / "small" / f"f{number:05}")


def listing(root: Path) -> None:
    seen = 0
    with os.scandir(root / "small") as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            seen += 1
    if seen != FILES:
        raise RuntimeError(f"the listing of {root}/small has {seen} entries instead of {FILES}")


def remove(root: Path) -> None:
    for number in range(FILES):
        os.unlink(root / "small" / f"f{number:05}")
    (root / "small").rmdir()


def untar(root: Path) -> None:
    subprocess.run(["tar", "xf", root.parent / "small.tar", "-C", root], check=True)


def remove_tree(root: Path) -> None:
    subprocess.run(["rm", "-rf", root / "tree"], check=True)


def _piece(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8)).digest() * (PIECE // 32)


def write_stream(root: Path) -> None:
    pieces = [_piece(number) for number in range(16)]
    with open(root / "stream", "wb", buffering=0) as file:
        for number in range(STREAM // PIECE):
            file.write(pieces[number % 16])
        os.fsync(file.fileno())


def read_stream(root: Path) -> None:
    total = 0
    buffer = bytearray(PIECE)
    with open(root / "stream", "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    if total != STREAM:
        raise RuntimeError(f"{root}/stream has {total} bytes instead of {STREAM}")


def read_random(root: Path) -> None:
    chance = random.Random(11)
    file = os.open(root / "stream", os.O_RDONLY)
    try:
        for _ in range(RANDOM_READS):
            if len(os.pread(file, SMALL, chance.randrange(STREAM // SMALL) * SMALL)) != SMALL:
                raise RuntimeError(f"a short read of {root}/stream")
    finally:
        os.close(file)


# In this order: what a row leaves, the next ones use.
ROWS = (
    Row("create 5,000 × 4 KiB", create, cold=False, bar=1.0),
    Row("stat 5,000, cold", stat, cold=True, bar=1.0),
    Row("list 5,000, cold", listing, cold=True, bar=1.0),
    Row("remove 5,000", remove, cold=False, bar=1.0),
    Row("tar x, 5,000 small files", untar, cold=False, bar=1.0),
    Row("rm -rf of it", remove_tree, cold=False, bar=1.0),
    Row("write 1 GiB", write_stream, cold=False, bar=0.7),
    Row("read 1 GiB, cold", read_stream, cold=True, bar=0.7),
    Row("4,000 random 4 KiB reads, cold", read_random, cold=True, bar=0.7),
)
