"""Objects as files below a directory (`file` storage, format §2.5 and §6.2).

Invariant: a file under an object's name is complete: it is written under `.<name>.tmp<number>` in the same directory and
renamed. Like the real client it is not synced to the disk: what a machine's crash may take is the directory's own promise.
Concurrency: small reads (`pread`) and writes run in the loop, because an executor hop (75 µs) costs more than they do; writes of
more than 64 KiB run in threads, for allocating new pages of a file takes milliseconds per block.
"""

import asyncio
import contextlib
import errno
import os
import random
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Final, TypeAlias

from jfs.errors import (
    ObjectError,
    ObjectForbidden,
    ObjectNotFound,
    ObjectUnavailable,
    StorageFull,
    StorageMissing,
    StorageReadOnly,
)
from jfs.object.base import Data, ObjectInfo
from jfs.object.pread import FileReads

INLINE_WRITE: Final = 64 << 10  # bytes; up to here a write takes less than an executor hop
_Names: TypeAlias = list[str]
_Page: TypeAlias = list[ObjectInfo]  # inside the class `list` is a method
_TEMPORARY: Final = re.compile(r"\..*\.tmp\d+\Z", re.DOTALL)


class FileStorage:
    """All files below *root*, an absolute directory."""

    cheap_ranges = True
    whole_only = False
    at_once = INLINE_WRITE

    def __init__(self, root: str) -> None:
        self._root = root if root.endswith("/") else root + "/"
        self._device = 0  # of the root, when something was first made below it
        self._reads = FileReads()

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Data:
        try:
            fd = os.open(self._root + key, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._explain(error, "read", key) from error
        try:
            if size < 0:
                size = max(os.fstat(fd).st_size - offset, 0)
            return await self._reads.read(fd, offset, size)
        except OSError as error:
            raise self._explain(error, "read", key) from error
        finally:
            os.close(fd)

    async def put(self, key: str, data: Data, tier: int = 0) -> None:
        try:
            if len(data) <= INLINE_WRITE:
                self._write(key, data)
                return
            abandoned = threading.Event()
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._write, key, data, abandoned)
            except asyncio.CancelledError:
                abandoned.set()  # the caller may change the data from now on: the thread must not publish them
                raise
        except OSError as error:
            raise self._explain(error, "write", key) from error

    async def change_tier(self, key: str, tier: int) -> None:
        return

    async def thaw(self, key: str, days: int) -> None:
        raise ObjectUnavailable(f"{self.describe()} is a storage without archives: nothing can be restored there")

    def advise(self, key: str) -> None:
        asyncio.get_running_loop().run_in_executor(None, _advise, self._root + key)

    async def delete(self, key: str) -> None:
        try:
            os.unlink(self._root + key)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._explain(error, "delete", key) from error

    async def head(self, key: str) -> ObjectInfo:
        try:
            found = os.stat(self._root + key)
        except OSError as error:
            raise self._explain(error, "look at", key) from error
        return ObjectInfo(key, found.st_size, found.st_mtime)

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[ObjectInfo]:
        loop = asyncio.get_running_loop()
        walk = self._walk(prefix, after)
        try:
            while page := await loop.run_in_executor(None, next, walk, None):
                for info in page:
                    yield info
        except OSError as error:
            raise self._explain(error, "list", prefix) from error

    async def create_bucket(self) -> None:
        try:
            os.makedirs(self._root, exist_ok=True)
        except OSError as error:
            raise self._explain(error, "create", "") from error

    async def remove_bucket_parts(self, prefix: str) -> None:
        def sweep() -> None:
            for folder, _, _ in os.walk(self._root + prefix, topdown=False):
                with contextlib.suppress(OSError):  # not empty: someone else's files
                    os.rmdir(folder)

        await asyncio.get_running_loop().run_in_executor(None, sweep)

    async def close(self) -> None:
        return

    def describe(self) -> str:
        return f"file://{self._root}"

    def _write(self, key: str, data: Data, abandoned: threading.Event | None = None) -> None:
        path = self._root + key
        folder, _, name = path.rpartition("/")
        temporary = f"{folder}/.{name}.tmp{random.getrandbits(31)}"
        fd = self._open_new(temporary, folder)
        try:
            try:
                written = os.write(fd, data)
                while written < len(data):
                    written += os.write(fd, memoryview(data)[written:])
            finally:
                os.close(fd)
            if abandoned is not None and abandoned.is_set():
                os.unlink(temporary)
            else:
                os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _open_new(self, path: str, folder: str) -> int:
        """A descriptor of a new file in *folder*, which is made when missing; the root is not, when it has gone."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        for _ in range(3):  # another client may remove the empty directory between the two calls
            try:
                return os.open(path, flags, 0o666)
            except FileNotFoundError:
                self._check_root()
                os.makedirs(folder, exist_ok=True)
        return os.open(path, flags, 0o666)

    def _check_root(self) -> None:
        """FileNotFoundError when the root is gone, or is not the file system that it was: what is written there would be lost."""
        device = os.stat(self._root).st_dev
        if self._device and device != self._device:
            raise FileNotFoundError(errno.ENOENT, "another file system", self._root)
        self._device = device

    def _missing(self) -> StorageMissing:
        gone = "is not the one it was" if os.path.isdir(self._root) else "does not exist"
        return StorageMissing(f"the directory {self._root} {gone}: create it, or mount what it is on")

    def _walk(self, prefix: str, after: str) -> Iterator[_Page]:
        """Pages of objects in key order, one per directory (and run of files in it), skipping what cannot match."""
        folder = prefix.rpartition("/")[0]
        pending = [(folder + "/" if folder else "")]
        while pending:
            folder = pending.pop()
            if not folder.endswith("/") and folder:  # a file met in order, kept as its key
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(self._root + folder)
                    yield [ObjectInfo(folder, found.st_size, found.st_mtime)]
                continue
            page: _Page = []
            names: _Names = []
            try:
                with os.scandir(self._root + folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=True):
                            names.append(folder + entry.name + "/")
                        elif not _TEMPORARY.match(entry.name):
                            names.append(folder + entry.name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            names.sort(key=os.fsencode)
            names = [name for name in names if _may_match(name, prefix, after)]
            at = 0
            while at < len(names) and not names[at].endswith("/"):
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(self._root + names[at])
                    page.append(ObjectInfo(names[at], found.st_size, found.st_mtime))
                at += 1
            pending.extend(reversed(names[at:]))
            if page:
                yield page

    def _explain(self, error: OSError, action: str, key: str) -> ObjectError:
        what = f"{self._root}{key}"
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) and action in ("read", "look at"):
            if not os.path.isdir(self._root):  # not one object is missing: the file system with all of them is
                return self._missing()
            return ObjectNotFound(f"there is no object {key} in {self.describe()}")
        if error.errno == errno.ENOENT and error.filename == self._root:
            return self._missing()
        if error.errno == errno.EROFS:
            return StorageReadOnly(f"cannot {action} {what}: its file system is mounted read-only")
        if isinstance(error, PermissionError):
            return ObjectForbidden(f"cannot {action} {what}: this user may not; check the directory's owner and mode")
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else ObjectUnavailable
        return kind(f"cannot {action} {what}: {os.strerror(error.errno or 0)}")


def _may_match(name: str, prefix: str, after: str) -> bool:
    raw, wanted, behind = os.fsencode(name), os.fsencode(prefix), os.fsencode(after)
    if name.endswith("/"):
        return (raw.startswith(wanted) or wanted.startswith(raw)) and (
            raw > behind[: len(raw)] or behind.startswith(raw)
        )
    return raw.startswith(wanted) and raw > behind


def _advise(path: str) -> None:
    """*Thread.* Have the kernel read a file into its page cache; what is wrong with it the read will tell."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)
