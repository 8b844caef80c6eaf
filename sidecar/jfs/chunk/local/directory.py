"""One cache directory of a volume: its files, its free space, and whether it can be used at all (format §6.8).

Place in the flow: `disk` and `staging` → here → the local file system. Invariants: a file under a block's name is complete (written under
a name ending with `.tmp`, then renamed), so any number of processes may share the directory; what fails here is never an error of a
read or write of the volume. Three I/O errors within a minute take the directory out of use; it is tried again each minute.
Concurrency: the methods marked *thread* do blocking I/O and may run in any thread; the rest belongs to the event loop.
"""

import contextlib
import errno
import itertools
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from jfs.chunk.local import checksum
from jfs.chunk.local.index import Index
from jfs.chunk.local.layout import LOCK, RAW, STAGED, TEMPORARY, BlockName, directory_mode, ident, parse
from jfs.chunk.local.open_blocks import OpenBlock
from jfs.chunk.local.options import CacheOptions
from jfs.object.base import Data

log = logging.getLogger(__name__)
_ERRORS: Final = 3  # within …
_WITHIN: Final = 60.0  # … seconds take a directory out of use
_PAGE: Final = 10_000  # files that a scan gives at a time
_UNMADE: Final = "-"  # the name of a directory that is made with its first block
_STALE: Final = 600.0  # seconds after which an unfinished file is nobody's
_MISSING: Final = (errno.ENOENT, errno.ENOTDIR)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_numbers = itertools.count()


class Claim:
    """Between a thread that writes a file and the caller who may stop waiting for it: whichever comes first wins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._abandoned = False

    def publish(self, temporary: str, path: str) -> None:
        """*Thread.* Give the file its name; OSError(ECANCELED) when nobody waits for it any more."""
        with self._lock:
            if self._abandoned:
                raise OSError(errno.ECANCELED, "took too long", path)
            os.rename(temporary, path)

    def abandon(self) -> None:
        """From now on the file does not appear (it may have)."""
        with self._lock:
            self._abandoned = True


class StagedFile(NamedTuple):
    """A staged block that a scan has found, and when it was written (unix seconds)."""

    key: str
    name: BlockName
    written: float


class CacheDirectory:
    """The part `<path>/<volume uuid>/` of a cache directory, with its share of the limits."""

    def __init__(self, path: str, volume: str, options: CacheOptions, size: int, items: int) -> None:
        self.path = path
        self.root = f"{path}/{volume}/"
        self.name = ""  # the lock's text; "" while the directory is out of use
        self.index = Index(size, items, options.eviction)
        self.lacking = 0  # bytes by which the file system has less room than it must keep
        self.staging_lacks = False  # even staged blocks find too little room
        self.has_staging = False
        self._options = options
        self._device = -1
        self._errors: deque[float] = deque(maxlen=_ERRORS)

    @property
    def usable(self) -> bool:
        """Whether blocks may be looked for and stored here."""
        return bool(self.name)

    def prepare(self) -> None:
        """*Thread.* Make the directory usable, and remember which device it is on. OSError when that is impossible."""
        if not self._options.eager and self.name != _UNMADE and not os.path.exists(self.root + LOCK):
            self.name = _UNMADE
            return
        os.makedirs(self.path, exist_ok=True)
        self._make(self.root)
        name = self._lock()
        self._device = os.stat(self.root).st_dev
        self._look_for_staging()
        self.measure()
        self._errors.clear()
        self.name = name

    def _look_for_staging(self) -> None:
        """*Thread.* Another process may have made a staging area; that this one makes one must not be forgotten meanwhile."""
        if os.path.isdir(self.root + STAGED):
            self.has_staging = True

    def _lock(self) -> str:
        path = self.root + LOCK
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii") as file:
                text = file.read().strip()
                if text:
                    return text
            own = f"{path}.{os.getpid()}.{next(_numbers)}{TEMPORARY}"
            with open(own, "x", encoding="ascii") as file:
                file.write(str(uuid.uuid4()))
            try:
                with contextlib.suppress(FileExistsError):  # another process was faster: its text counts
                    os.link(own, path)
            finally:
                os.unlink(own)
        raise OSError(errno.EIO, "the lock file can neither be read nor made", path)

    def look(self) -> bool:
        """*Thread.* Whether the directory is still the one that was prepared; an emptied one is made anew (and its index is wrong), one
        whose disk is gone is out of use, one that was out of use is tried again."""
        try:
            if not self.name:
                self.prepare()
                log.info("the cache directory %s is used again", self.path)
                return False
            if self.name == _UNMADE:
                return True
            try:
                with open(self.root + LOCK, encoding="ascii") as file:
                    same = file.read().strip() == self.name
            except FileNotFoundError:
                same = False
                if os.stat(self.path).st_dev != self._device and self._device >= 0:
                    self._take_out("another device is mounted there")
                    return True
            if not same:
                self.prepare()
            self.measure()
            return same
        except OSError as error:
            if self.name:
                self._take_out(str(error))
            return True

    def measure(self) -> None:
        """*Thread.* Note how much room the file system lacks. OSError."""
        room = os.statvfs(self.root)
        blocks = room.f_bavail / room.f_blocks if room.f_blocks else 1.0
        files = room.f_favail / room.f_files if room.f_files else 1.0
        lacking = 0.0
        if blocks < self._options.free_ratio:
            lacking = (self._options.free_ratio - blocks) * room.f_blocks * room.f_frsize
        elif files < self._options.free_ratio:  # as many bytes as that many files hold here on average
            average = self.index.used / max(len(self.index), 1)
            lacking = (self._options.free_ratio - files) * room.f_files * max(average, 1.0)
        self.lacking = int(lacking)
        self.staging_lacks = min(blocks, files) < self._options.free_ratio / 2

    def failed(self, error: OSError) -> None:
        """An access has failed: too many of these take the directory out of use. A full disk is no fault."""
        if error.errno in _FULL:
            self.lacking = max(self.lacking, 1)
            return
        log.warning("the cache directory %s fails: %s", self.path, error)
        now = time.monotonic()
        self._errors.append(now)
        if len(self._errors) == _ERRORS and now - self._errors[0] < _WITHIN and self.name:
            self._take_out(str(error))

    def _take_out(self, reason: str) -> None:
        """In any thread; the index is cleared by the event loop (`DiskCache`)."""
        log.error("the cache directory %s is not used any more: %s", self.path, reason)
        self.name = ""
        self._device = -1

    # -- files

    def open(self, key: str, length: int) -> OpenBlock | None:
        """A cached or staged block of *length* bytes; None when it is not here. One of a wrong length is removed. OSError."""
        for part in (RAW, STAGED) if self.has_staging else (RAW,):
            path = self.root + part + key
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in _MISSING:
                    continue
                raise
            try:
                size = os.fstat(fd).st_size
                sums = b""
                extra = checksum.trailer_length(length)
                if size == length + extra and self._options.checksum != "none":
                    sums = os.pread(fd, extra, length)
                if size in (length, length + extra):
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # who reads on says so (`DiskCache.advise`)
                    block = OpenBlock(self, fd, length, sums)
                    fd = -1
                    return block
            finally:
                if fd >= 0:
                    os.close(fd)
            log.warning("the cached block %s has %d bytes and was removed", path, size)
            if part == RAW:
                self.remove(key)
        return None

    def exists(self, key: str) -> bool:
        """Whether the block is here, whoever stored it."""
        return os.path.exists(self.root + RAW + key) or (self.has_staging and os.path.exists(self.root + STAGED + key))

    def write(self, key: str, data: Data) -> None:
        """*Thread.* Store a block. OSError."""
        self._write(RAW + key, data)

    def stage(self, key: str, data: Data, claim: Claim) -> None:
        """*Thread.* Store a block that is to be uploaded later, and a link to it among the cached ones. OSError; ECANCELED when *claim* was
        abandoned before."""
        self.has_staging = True
        self._write(STAGED + key, data, claim)
        source, target = self.root + STAGED + key, self.root + RAW + key
        with contextlib.suppress(OSError):  # without the link it is read where it is staged
            try:
                os.link(source, target)
            except FileNotFoundError:
                self._make(os.path.dirname(target))
                os.link(source, target)

    def _write(self, place: str, data: Data, claim: Claim | None = None) -> None:
        path = self.root + place
        temporary = f"{path}.{os.getpid()}.{next(_numbers)}{TEMPORARY}"
        mode = self._options.mode
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            fd = os.open(temporary, flags, mode)
        except FileNotFoundError:
            if self.name == _UNMADE:
                self.prepare()
            self._make(os.path.dirname(path))
            fd = os.open(temporary, flags, mode)
        try:
            try:
                if mode & 0o077:  # whatever the umask says
                    os.fchmod(fd, mode)
                parts = [memoryview(data)]
                if self._options.checksum != "none":
                    parts.append(memoryview(checksum.trailer(data)))
                _write_all(fd, parts)
            finally:
                os.close(fd)
            if claim is None:
                os.rename(temporary, path)
            else:
                claim.publish(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def remove(self, key: str) -> None:
        """Remove a cached block if it is here; errors are noted."""
        self._unlink(self.root + RAW + key)

    def staged_path(self, key: str) -> str:
        """Where a block is staged."""
        return self.root + STAGED + key

    def unstage(self, key: str) -> None:
        """Remove a staged block if it is here; errors are noted."""
        self._unlink(self.root + STAGED + key)

    def _unlink(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:
            if error.errno not in _MISSING:
                self.failed(error)

    def _make(self, directory: str) -> None:
        """Make a directory with those above it, down from the volume's."""
        try:
            os.mkdir(directory)
        except FileExistsError:
            return
        except FileNotFoundError:
            above = os.path.dirname(directory.rstrip("/"))
            if len(above) < len(self.path):
                raise
            self._make(above)
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory)
        os.chmod(directory, directory_mode(self._options.mode))

    # -- scans

    def scan(self) -> Iterator[Sequence[tuple[int, int, float]]]:
        """*Thread.* Pages of (ident, length, last use) of the cached blocks; removes what was left unfinished. OSError."""
        page: list[tuple[int, int, float]] = []
        for entry in self._files(RAW):
            name = parse(entry.name)
            if name is None:
                continue
            try:
                found = entry.stat()
            except OSError:
                continue  # it was removed meanwhile
            page.append((ident(name.slice_id, name.indx), name.length, max(found.st_atime, found.st_mtime)))
            if len(page) >= _PAGE:
                yield page
                page = []
        yield page

    def staged(self) -> list[StagedFile]:
        """*Thread.* The staged blocks, whichever process left them."""
        found: list[StagedFile] = []
        self._look_for_staging()
        start = len(self.root + STAGED)
        for entry in self._files(STAGED):
            name = parse(entry.name)
            if name is not None:
                with contextlib.suppress(OSError):
                    found.append(StagedFile(entry.path[start:], name, entry.stat().st_mtime))
        return found

    def _files(self, part: str) -> Iterator[os.DirEntry[str]]:
        waiting = [self.root + part]
        while waiting:
            try:
                with os.scandir(waiting.pop()) as entries:
                    listed = list(entries)
            except OSError as error:
                if error.errno in _MISSING:
                    continue
                raise
            for entry in listed:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name.endswith(TEMPORARY):
                    with contextlib.suppress(OSError):
                        if time.time() - entry.stat().st_mtime > _STALE:
                            os.unlink(entry.path)
                else:
                    yield entry


def _write_all(fd: int, parts: list[memoryview]) -> None:
    while parts:
        count = os.writev(fd, parts)
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][count:]
