"""The counters of a mount, under the real client's names (format §8.4). A leaf: any layer counts, nothing here does I/O.

One process serves one mount, so the registry is the module's own; a test makes its own `Registry`. Counting on the hot path
is an attribute addition or one list look-up; sorting, formatting and asking the gauges happens when somebody reads.
Concurrency: everything runs in the event loop's thread, except that engines' worker threads may add too – a lost addition
of a counter under such a race is accepted, a torn number is impossible.
"""

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Final

PREFIX: Final = "juicefs_"
_NOT_IN_STATS: Final = ("storage_class", "subdir")  # labels whose values the real client does not join to names


class Counter:
    """A number that grows: `counter.value += n`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """Observations in buckets with upper bounds *bounds* (the real client's), with their sum."""

    __slots__ = ("bounds", "counts", "sum", "total")

    def __init__(self, bounds: list[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0
        self.total = 0

    def observe(self, value: float) -> None:
        """Count *value* (seconds or bytes, as the name says)."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.total += 1


def exponential(start: float, factor: float, count: int) -> list[float]:
    """Bucket bounds start, start·factor, …"""
    return [start * factor**i for i in range(count)]


def linear(start: float, width: float, count: int) -> list[float]:
    """Bucket bounds start, start+width, …"""
    return [start + width * i for i in range(count)]


DURATIONS: Final = exponential(0.0001, 1.5, 30)
FUSE_DURATIONS: Final = exponential(0.00001, 1.8, 29)
COMPACT_SIZES: Final = exponential(1024, 2, 16)
OBJECT_DURATIONS: Final = exponential(0.01, 1.5, 25)
SIZES: Final = linear(4096, 4096, 32)


class _Family:
    """A metric of one name with its children by label values."""

    def __init__(self, name: str, text: str, kind: str, labels: tuple[str, ...], bounds: list[float] | None) -> None:
        self.name, self.text, self.kind, self.labels, self.bounds = name, text, kind, labels, bounds
        self.children: dict[tuple[str, ...], Counter | Histogram] = {}
        self.read: Callable[[], float | Mapping[str, float]] | None = None


class Registry:
    """All metrics of one mount. Asking twice for a name gives the same counter."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def _family(
        self, name: str, text: str, kind: str, labels: tuple[str, ...], bounds: list[float] | None = None
    ) -> _Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family(name, text, kind, labels, bounds)
        return family

    def counter(self, name: str, text: str = "", **labels: str) -> Counter:
        """The counter *name* (without prefix) with these labels; keep it and add to its `value`."""
        family = self._family(name, text, "counter", tuple(labels))
        child = family.children.setdefault(tuple(labels.values()), Counter())
        assert isinstance(child, Counter)
        return child

    def histogram(self, name: str, bounds: list[float], text: str = "", **labels: str) -> Histogram:
        """The histogram *name* with these labels; keep it and `observe`."""
        family = self._family(name, text, "histogram", tuple(labels), bounds)
        child = family.children.get(tuple(labels.values()))
        if child is None:
            child = family.children[tuple(labels.values())] = Histogram(bounds)
        assert isinstance(child, Histogram)
        return child

    def gauge(
        self, name: str, read: Callable[[], float | Mapping[str, float]], text: str = "", label: str = ""
    ) -> None:
        """A number asked for when somebody reads; with *label*, *read* gives a number for each of its values. A later
        registration replaces an earlier one."""
        family = self._family(name, text, "gauge", (label,) if label else ())
        family.read = read

    def _samples(self, family: _Family) -> Iterator[tuple[tuple[str, ...], float | Histogram]]:
        if family.read is not None:
            answer = family.read()
            if isinstance(answer, Mapping):
                yield from (((value,), number) for value, number in sorted(answer.items()))
            else:
                yield (), answer
        for values, child in sorted(family.children.items()):
            yield values, child.value if isinstance(child, Counter) else child

    def stats(self) -> str:
        """The text of `.stats`: a line `name value` for each number, label values joined to the name, histograms as
        `_total` and `_sum` (format §8.1)."""
        lines: list[str] = []
        for name in sorted(self._families):
            family = self._families[name]
            for values, sample in self._samples(family):
                shown = (text for label, text in zip(family.labels, values, strict=True) if label not in _NOT_IN_STATS)
                full = "_".join((PREFIX + name, *shown))
                if isinstance(sample, Histogram):
                    lines += (f"{full}_total {sample.total}", f"{full}_sum {number(sample.sum)}")
                else:
                    lines.append(f"{full} {number(sample)}")
        return "\n".join(lines) + "\n"

    def prometheus(self, constant: Mapping[str, str]) -> str:
        """The Prometheus text format 0.0.4 with the constant labels on every sample."""
        lines: list[str] = []
        for name in sorted(self._families):
            family = self._families[name]
            full = PREFIX + name
            lines += (f"# HELP {full} {family.text or name}", f"# TYPE {full} {family.kind}")
            for values, sample in self._samples(family):
                labels = [*zip(family.labels, values, strict=True), *constant.items()]
                if not isinstance(sample, Histogram):
                    lines.append(f"{full}{_labels(labels)} {number(sample)}")
                    continue
                below = 0
                for bound, count in zip([*sample.bounds, float("inf")], sample.counts, strict=True):
                    below += count
                    edge = "+Inf" if bound == float("inf") else number(bound)
                    lines.append(f"{full}_bucket{_labels([*labels, ('le', edge)])} {below}")
                lines.append(f"{full}_sum{_labels(labels)} {number(sample.sum)}")
                lines.append(f"{full}_count{_labels(labels)} {sample.total}")
        return "\n".join(lines) + "\n"


def _labels(pairs: list[tuple[str, str]]) -> str:
    if not pairs:
        return ""

    def quote(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{quote(value)}"' for name, value in pairs) + "}"


def number(value: float) -> str:
    """A number as the real client prints it: integers without a point."""
    return str(int(value)) if value == int(value) else repr(float(value))


def register_process(registry: Registry, started: float) -> None:
    """uptime, cpu_usage and memory, and the usual process_… gauges; *started* is the `time.monotonic()` of the mount."""

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    def pages(column: int) -> Callable[[], float]:
        def read() -> float:
            with open("/proc/self/statm", encoding="ascii") as statm:
                return int(statm.read().split()[column]) * resource.getpagesize()

        return read

    began = time.time() - (time.monotonic() - started)
    registry.gauge("uptime", lambda: time.monotonic() - started, "Seconds since the mount started.")
    registry.gauge("cpu_usage", cpu, "CPU seconds used.")
    registry.gauge("memory", pages(1), "Resident memory in bytes.")
    registry.gauge("process_cpu_seconds_total", cpu, "CPU seconds used.")
    registry.gauge("process_resident_memory_bytes", pages(1), "Resident memory in bytes.")
    registry.gauge("process_virtual_memory_bytes", pages(0), "Virtual memory in bytes.")
    registry.gauge("process_start_time_seconds", lambda: began, "Unix time at which the mount started.")
    registry.gauge("process_open_fds", lambda: len(os.listdir("/proc/self/fd")) - 1, "Open file descriptors.")
    registry.gauge(
        "process_max_fds",
        lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "Most file descriptors that may be open.",
    )


REGISTRY: Final = Registry()
