"""Counts and logs each request of a host: metrics of format §8.4, the access log of §8.2, and the one place where an error of
a handler becomes an errno.

`Operation` holds an operation's counters, so that a finished request costs three additions and a bucket search.
"""

import errno
import logging
import time
from typing import Any, Final

from jfs.errors import FsError, JfsError
from jfs.metrics import FUSE_DURATIONS, SIZES, Registry
from jfs.vfs.access_log import AccessLog

log = logging.getLogger("jfs.fuse")
SLOW_SECONDS: Final = 10.0


class Operation:
    """The counters of one operation."""

    __slots__ = ("name", "seconds", "total")

    def __init__(self, registry: Registry, name: str) -> None:
        self.name = name
        self.total = registry.counter("fuse_ops_total", "Requests by operation.", method=name)
        self.seconds = registry.counter("fuse_ops_durations_seconds", "Seconds spent by operation.", method=name)


class Accounting:
    """What a host tells of each request."""

    def __init__(self, registry: Registry, access_log: AccessLog) -> None:
        self._registry = registry
        self._log = access_log
        self._durations = registry.histogram(
            "fuse_ops_durations_histogram_seconds", FUSE_DURATIONS, "Seconds of all requests."
        )
        self._read = registry.histogram("fuse_read_size_bytes", SIZES, "Bytes given to reads.")
        self._written = registry.histogram("fuse_written_size_bytes", SIZES, "Bytes taken from writes.")

    def operation(self, name: str) -> Operation:
        """The counters of the operation *name*."""
        return Operation(self._registry, name)

    def finish(
        self,
        operation: Operation,
        caller: tuple[Any, ...],
        args: tuple[Any, ...],
        result: Any,
        error: int,
        started: float,
    ) -> None:
        """A request ended with *result* or the errno *error*; *started* is its `time.perf_counter()`."""
        seconds = time.perf_counter() - started
        operation.total.value += 1
        operation.seconds.value += seconds
        self._durations.observe(seconds)
        if error:
            name = errno.errorcode.get(error, str(error))
            self._registry.counter("fuse_ops_io_errors", "Requests that ended with an error.", errno=name).value += 1
        elif operation.name == "read":
            self._read.observe(len(result))
        elif operation.name == "write":
            self._written.observe(result)
        if self._log.active and not _reads_log(operation.name, args):
            self._log.record(operation.name, (caller[0], caller[1], caller[2]), args, result, error, seconds)
        if seconds > SLOW_SECONDS and not _reads_log(operation.name, args):
            log.warning("slow operation: %s took %.1f s", operation.name, seconds)


def _reads_log(name: str, args: tuple[Any, ...]) -> bool:
    """Virtual files are not logged: reading the log would make lines of its own (format §8.1)."""
    return name in ("read", "open", "release", "flush", "write") and 0x7FFFFFFF00000000 <= args[0] < 0x7FFFFFFF10000000


_said: dict[str, float] = {}


def _say(sentence: str, operation: str, args: tuple[Any, ...]) -> None:
    """Log a failure of something outside, the same one not more than once in five seconds: all requests fail while it lasts."""
    now = time.monotonic()
    if now < _said.get(sentence, 0.0):
        return
    if len(_said) > 100:
        _said.clear()
    _said[sentence] = now + 5.0
    log.error("%s%r failed: %s", operation, args, sentence)


def errno_of(error: BaseException, operation: str, args: tuple[Any, ...]) -> int:
    """The errno to answer with; whatever is no FsError is EIO and logged: what broke outside in a line, a mistake of ours
    with its traceback."""
    if isinstance(error, FsError):
        return error.errno
    shown = tuple(f"<{len(arg)} bytes>" if isinstance(arg, memoryview) else arg for arg in args)
    if isinstance(error, JfsError):
        _say(str(error), operation, shown)
    else:
        log.error("%s%r failed", operation, shown, exc_info=error)
    return errno.EIO
