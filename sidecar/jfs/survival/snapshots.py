"""The names of directory listings that are under way, so that a successor goes on with the same positions.

A listing's cookies are positions in a snapshot. Whoever succeeds in the middle of one needs to know which name had which position:
each page's names are appended to a file as they are handed out, ended by NUL. A name that was cut off by a kill was not
handed out. Most directories fit one reply, and are never recorded (`FITS`). One event loop.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

# Bytes that every reply can take, and an upper bound of what an entry takes in it beside its name.
FITS: Final = 4096
ENTRY: Final = 160


class Snapshots:
    """The files of all listings, in *directory*; None: nothing survives."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        if directory is not None:
            os.makedirs(directory, mode=0o700, exist_ok=True)

    def of(self, fh: int) -> "Snapshot | None":
        """That of the handle *fh*."""
        return None if self._directory is None else Snapshot(os.path.join(self._directory, f"{fh:x}"))

    def clear(self) -> None:
        """Remove all."""
        if self._directory is not None:
            for name in os.listdir(self._directory):
                os.unlink(os.path.join(self._directory, name))


class Snapshot:
    """One listing's file, made with its first names."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    @property
    def is_kept(self) -> bool:
        """Whether names were added since the listing began."""
        return self._fd >= 0

    def add(self, names: Sequence[bytes]) -> None:
        """The next positions. OSError when the directory is full: then a successor has to guess."""
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
        os.write(self._fd, b"\0".join(names) + b"\0")

    def names(self) -> list[bytes]:
        """What a predecessor added."""
        try:
            with open(self._path, "rb") as file:
                return file.read().split(b"\0")[:-1]
        except FileNotFoundError:
            return []

    def clear(self) -> None:
        """The listing begins anew, or its handle is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(FileNotFoundError):
                os.unlink(self._path)
