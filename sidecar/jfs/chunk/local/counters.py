"""The numbers of a local cache, under the real client's names (format §8.4)."""

from collections.abc import Callable
from typing import Final

from jfs.metrics import Registry, exponential

_DURATIONS: Final = exponential(0.00001, 2, 20)


class CacheCounters:
    """Counters of one cache, and gauges for what it holds: *blocks* and *bytes*."""

    def __init__(self, registry: Registry, blocks: Callable[[], int], held: Callable[[], int]) -> None:
        self._hits = registry.counter("blockcache_hits", "Reads answered by the cache.")
        self._hit_bytes = registry.counter("blockcache_hit_bytes", "Bytes read from the cache.")
        self._misses = registry.counter("blockcache_miss", "Reads not answered by the cache.")
        self._miss_bytes = registry.counter("blockcache_miss_bytes", "Bytes had from the storage.")
        self._reads = registry.histogram("blockcache_read_hist_seconds", _DURATIONS, "Seconds of reads from the cache.")
        self._writes = registry.counter("blockcache_writes", "Blocks written to the cache.")
        self._write_bytes = registry.counter("blockcache_write_bytes", "Bytes written to the cache.")
        self._writing = registry.histogram(
            "blockcache_write_hist_seconds", _DURATIONS, "Seconds of writes to the cache."
        )
        self.drops = registry.counter("blockcache_drops", "Blocks not cached because too many waited.")
        self.evicts = registry.counter("blockcache_evicts", "Blocks evicted from the cache.")
        registry.gauge("blockcache_blocks", blocks, "Cached blocks.")
        registry.gauge("blockcache_bytes", held, "Bytes of them.")

    def hit(self, count: int, seconds: float) -> None:
        """*count* bytes were read from the cache."""
        self._hits.value += 1
        self._hit_bytes.value += count
        self._reads.observe(seconds)

    def miss(self, count: int) -> None:
        """*count* bytes were not in the cache."""
        self._misses.value += 1
        self._miss_bytes.value += count

    def wrote(self, count: int, seconds: float) -> None:
        """A block of *count* bytes was written."""
        self._writes.value += 1
        self._write_bytes.value += count
        self._writing.observe(seconds)
