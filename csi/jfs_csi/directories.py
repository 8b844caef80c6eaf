"""Directories below the kubelet's directory, opened name by name without ever following a symbolic link.

Between a path's check and its use somebody could swap a directory for a link; so nothing is used by path: every
operation walks from a descriptor of the kubelet's directory with `openat(O_PATH | O_NOFOLLOW | O_DIRECTORY)` and works on
the descriptor it arrives at. `O_PATH` opens never call into a file system's daemon, so that a dead or hung FUSE mount on
the way cannot block us. Removal is `rmdir` only: what is not empty stays. Blocking but quick; safe from any thread.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jfs_csi.layout import Names

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class NotADirectory(OSError):
    """A name on the way is a symbolic link or a file; the text names it."""


class Tree:
    """The kubelet's directory. `base` may itself be reached through links: the administrator chose it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        # mountinfo shows paths without links; comparisons with it need the resolved name.
        self.resolved = base.resolve()

    def mount_path(self, relative: Names) -> str:
        """How /proc/self/mountinfo spells the directory."""
        return str(self.resolved.joinpath(*relative))

    @contextmanager
    def open(self, relative: Names, *, make: int | None = None) -> Iterator[int]:
        """Yield an `O_PATH` descriptor of the directory.

        `make` is the mode with which missing directories are made (the umask does not apply to it); without it a
        missing one raises FileNotFoundError. Raises `NotADirectory` if a name is a link or no directory.
        """
        descriptor = os.open(self.resolved, _FLAGS)
        try:
            for depth, name in enumerate(relative, 1):
                if make is not None:
                    _mkdir(descriptor, name, make)
                try:
                    following = os.open(name, _FLAGS, dir_fd=descriptor)
                except OSError as error:
                    if error.errno in (errno.ENOTDIR, errno.ELOOP):
                        where = self.base.joinpath(*relative[:depth])
                        raise NotADirectory(
                            errno.ENOTDIR, f"{where} is a symbolic link or a file; only real directories are used"
                        ) from None
                    raise
                os.close(descriptor)
                descriptor = following
            yield descriptor
        finally:
            os.close(descriptor)

    def make(self, relative: Names, mode: int, *, parents: bool = True) -> None:
        """Make the directory, and its missing parents (0711) if wished. An existing one is left, also if mounted over."""
        with self.open(relative[:-1], make=0o711 if parents else None) as parent:
            _mkdir(parent, relative[-1], mode)

    def remove(self, relative: Names) -> bool:
        """rmdir. True if it is gone afterwards; False if it is not empty or still in use (which is left)."""
        try:
            with self.open(relative[:-1]) as parent:
                os.rmdir(relative[-1], dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                return False
            raise
        return True

    def unlink(self, relative: Names) -> None:
        """Remove a file or a socket; a missing one is fine."""
        try:
            with self.open(relative[:-1]) as parent:
                os.unlink(relative[-1], dir_fd=parent)
        except FileNotFoundError:
            return

    def names(self, relative: Names) -> list[str]:
        """Sorted names in the directory; empty if it does not exist. Never stats the entries."""
        try:
            with self.open(relative) as descriptor:
                readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
                try:
                    return sorted(os.listdir(readable))
                finally:
                    os.close(readable)
        except FileNotFoundError:
            return []

    def exists(self, relative: Names) -> bool:
        """Whether the directory is there. Only for directories of the kubelet and ours, never for a target."""
        try:
            with self.open(relative) as descriptor:
                return stat.S_ISDIR(os.fstat(descriptor).st_mode)
        except FileNotFoundError:
            return False


def _mkdir(parent: int, name: str, mode: int) -> None:
    """Make the directory if there is none. With its mode from the first moment, as far as the umask lets it: a process that is
    killed before the second step must not leave one that a sidecar cannot enter."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return
    descriptor = os.open(name, _FLAGS, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)
