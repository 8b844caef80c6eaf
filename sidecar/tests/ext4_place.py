"""An ext4 of a test's own, in a file, mounted as ours are: what Linux itself answers.

Everything lies where every user may pass, unlike pytest's directories.
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A temporary directory that every user may pass."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def ext4(place: Path) -> Iterator[Path]:
    """A new ext4, mounted below *place*."""
    image, where = place / "ext4.img", place / "ext4"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-I", "256", image], check=True)
    subprocess.run(["mount", "-o", "loop,noatime,nodev,nosuid", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
