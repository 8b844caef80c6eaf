"""Work on one large file; each function is a row's preparation or its timed part."""

import hashlib
import os
import random
from pathlib import Path

STREAM = 1 << 30
PIECE = 1 << 20
BLOCK = 4096
RANDOM_READS = 4000
OVERWRITES = 400


def _piece(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8)).digest() * (PIECE // 32)


def no_stream(root: Path) -> None:
    (root / "stream").unlink(missing_ok=True)


def have_stream(root: Path) -> None:
    if not (root / "stream").exists():
        write(root)


def read_once(root: Path) -> None:
    """So that whoever keeps what was read has it."""
    have_stream(root)
    read(root)


def write(root: Path) -> None:
    pieces = [_piece(number) for number in range(16)]
    with open(root / "stream", "wb", buffering=0) as file:
        for number in range(STREAM // PIECE):
            file.write(pieces[number % 16])
        os.fsync(file.fileno())


def read(root: Path) -> None:
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
            if len(os.pread(file, BLOCK, chance.randrange(STREAM // BLOCK) * BLOCK)) != BLOCK:
                raise RuntimeError(f"a short read of {root}/stream")
    finally:
        os.close(file)


def overwrite(root: Path) -> None:
    chance = random.Random(13)
    file = os.open(root / "stream", os.O_WRONLY)
    try:
        for number in range(OVERWRITES):
            os.pwrite(file, number.to_bytes(4) * (BLOCK // 4), chance.randrange(STREAM // BLOCK) * BLOCK)
            os.fsync(file)
    finally:
        os.close(file)


def no_copy(root: Path) -> None:
    have_stream(root)
    (root / "copy").unlink(missing_ok=True)


def copy(root: Path) -> None:
    source = os.open(root / "stream", os.O_RDONLY)
    target = os.open(root / "copy", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        left = STREAM
        while left:
            copied = os.copy_file_range(source, target, left)
            if not copied:
                raise RuntimeError(f"copying {root}/stream ended {left} bytes too early")
            left -= copied
    finally:
        os.close(source)
        os.close(target)
