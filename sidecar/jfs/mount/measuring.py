"""Connects the layers' numbers to the metrics registry (format §8.4): object requests, buffers, volume totals."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from jfs.chunk.writer import Writer
from jfs.meta.volume import Meta, StatFS
from jfs.metrics import COMPACT_SIZES, DURATIONS, OBJECT_DURATIONS, Counter, Histogram, Registry, register_process


def object_observer(registry: Registry, storage_class: str) -> Callable[[str, float, int, bool], None]:
    """What BlockStore calls after each request; *storage_class* is that of the volume's objects, "" the storage's own."""
    labels = {"storage_class": storage_class or "STANDARD"}
    errors = registry.counter("object_request_errors", "Failed requests to the object storage.")

    known: dict[str, tuple[Histogram, Counter]] = {}

    def of(method: str) -> tuple[Histogram, Counter]:
        found = known[method] = (
            registry.histogram(
                "object_request_durations_histogram_seconds",
                OBJECT_DURATIONS,
                "Seconds of requests to the object storage.",
                method=method,
                **labels,
            ),
            registry.counter("object_request_data_bytes", "Bytes of objects.", method=method, **labels),
        )
        return found

    def observe(method: str, seconds: float, size: int, succeeded: bool) -> None:
        durations, data = known.get(method) or of(method)
        durations.observe(seconds)
        if succeeded:
            data.value += size
        else:
            errors.value += 1

    return observe


def compacted_sizes(registry: Registry) -> Histogram:
    """Counts the bytes of each new slice that a compaction wrote."""
    return registry.histogram("compact_size_histogram_bytes", COMPACT_SIZES, "Bytes of compacted slices.")


# Methods of Meta by the names that the real client counts them under.
_OPERATIONS: Final = {
    "lookup": "Lookup",
    "getattr": "GetAttr",
    "setattr": "SetAttr",
    "truncate": "Truncate",
    "readlink": "ReadLink",
    "mknod": "Mknod",
    "mkdir": "Mknod",
    "create": "Mknod",
    "symlink": "Mknod",
    "link": "Link",
    "unlink": "Unlink",
    "rmdir": "Rmdir",
    "rename": "Rename",
    "open": "Open",
    "read_slices": "Read",
    "commit_slice": "Write",
    "statfs": "StatFS",
    "setxattr": "SetXattr",
    "getxattr": "GetXattr",
    "listxattr": "ListXattr",
    "removexattr": "RemoveXattr",
}


def measure_operations(registry: Registry, meta: Meta) -> None:
    """Count and time the calls of *meta* from now on: its methods are replaced by timed ones, so that the metadata layer itself
    knows nothing of metrics."""
    durations = registry.histogram(
        "meta_ops_durations_histogram_seconds", DURATIONS, "Seconds of all metadata operations."
    )

    def timed(call: Callable[..., Awaitable[Any]], name: str) -> Callable[..., Awaitable[Any]]:
        total = registry.counter("meta_ops_total", "Metadata operations.", method=name)
        spent = registry.counter("meta_ops_duration_seconds", "Seconds of metadata operations.", method=name)

        async def run(*args: Any, **more: Any) -> Any:
            started = time.perf_counter()
            try:
                return await call(*args, **more)
            finally:
                seconds = time.perf_counter() - started
                total.value += 1
                spent.value += seconds
                durations.observe(seconds)

        return run

    for method, name in _OPERATIONS.items():
        setattr(meta, method, timed(getattr(meta, method), name))


class Volume:
    """The totals of the volume, asked for before the metrics are read."""

    def __init__(
        self, registry: Registry, meta: Meta, writer: Writer, open_files: Callable[[], int], *, subdir: str
    ) -> None:
        self._meta = meta
        self._registry = registry
        self._totals = StatFS(0, 0, 0, 0)
        register_process(registry, time.monotonic())
        registry.gauge("used_space", lambda: self._totals.used, "Bytes used in the volume.")
        registry.gauge("used_inodes", lambda: self._totals.inodes, "Inodes used in the volume.")
        registry.gauge("total_space", lambda: self._totals.total, "Bytes the volume can hold.")
        registry.gauge(
            "total_inodes", lambda: self._totals.inodes + self._totals.free_inodes, "Inodes the volume can hold."
        )
        registry.gauge("used_buffer_size_bytes", lambda: writer.dirty_bytes, "Bytes written but not committed yet.")
        registry.gauge("used_read_buffer_size_bytes", lambda: writer.budget.cached, "Bytes read and kept in memory.")
        registry.gauge(
            "object_request_uploading", lambda: writer.uploading, "Blocks on their way to the object storage."
        )
        registry.gauge(
            "subdir_info", lambda: {subdir: 1}, "The directory shown as root; empty for the volume's.", "subdir"
        )
        registry.gauge("fuse_open_handlers", open_files, "Open files.")

    async def stats(self) -> str:
        """The text of `.stats`."""
        self._totals = await self._meta.statfs()
        return self._registry.stats()

    async def prometheus(self, labels: dict[str, str]) -> str:
        """The Prometheus text."""
        self._totals = await self._meta.statfs()
        return self._registry.prometheus(labels)
