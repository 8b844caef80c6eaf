"""Puts the blocks of a mount together: object storage, limits, local cache, staging area, prefetching, as the options say.

Place in the flow: `serve` → here → `chunk`. What the options ask for and cannot be had (writeback without a cache on disk) is said once and
left out. Concurrency: none of its own.
"""

import logging
from collections.abc import Callable
from typing import Final

from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.local.disk import DiskCache
from jfs.chunk.local.interface import LocalCache
from jfs.chunk.local.memory import MemoryCache
from jfs.chunk.local.options import MEMORY, CacheOptions, default_directory, directories
from jfs.chunk.local.staging import Staging, StagingOptions
from jfs.chunk.memory import keep_blocks
from jfs.chunk.prefetch import LAZY_QUEUE, NEVER, Prefetcher
from jfs.chunk.rate import RateLimit
from jfs.format.setting import Setting
from jfs.metrics import REGISTRY
from jfs.mount import measuring
from jfs.mount.config import MountConfig
from jfs.object.base import ObjectStorage

log = logging.getLogger("jfs.mount")
_DEFAULT_SIZE: Final = MountConfig().cache_size


async def open_blocks(storage: ObjectStorage, config: MountConfig, current: Callable[[], Setting]) -> BlockStore:
    """The blocks of the volume with the setting *current* (asked again for limits that may change), its cache begun. Owns *storage*."""
    keep_blocks()
    setting = current()
    cache = _cache(config, setting)
    blocks = BlockStore(
        storage,
        BlockFormat(block_size=setting.block_size, compression=setting.compression, hash_prefix=setting.hash_prefix),
        BlockLimits(
            get_timeout=config.get_timeout,
            put_timeout=config.put_timeout,
            io_retries=config.io_retries,
            max_uploads=config.max_uploads,
            max_downloads=config.max_downloads,
            upload_rate=RateLimit(lambda: config.upload_limit or current().upload_limit),
            download_rate=RateLimit(lambda: config.download_limit or current().download_limit),
        ),
        observe=measuring.object_observer(REGISTRY, config.storage_class or setting.storage_class),
        cache=cache,
    )
    if cache is not None:
        await cache.start()
    if isinstance(cache, DiskCache) and not config.read_only:
        blocks.staging = Staging(
            cache,
            blocks.upload,
            StagingOptions(
                delay=config.upload_delay,
                hours=config.upload_hours,
                threshold=config.writeback_threshold_size,
                most=config.max_stage_write,
                patience=config.put_timeout,
            ),
            accepting=config.writeback,
            workers=config.max_uploads,
        )
        blocks.staging.start()
    elif config.writeback:
        log.warning("writeback needs a cache on a disk (cache-dir, cache-size) and a mount that writes: it is off")
    return blocks


def prefetcher(blocks: BlockStore, config: MountConfig) -> Prefetcher | None:
    """What brings blocks into the cache behind reads; None without a cache."""
    if blocks.cache is None:
        return None
    if not blocks.cheap_ranges:
        return Prefetcher(blocks.fill, config.prefetch)
    if not config.cache_dir:  # a directory is read as fast as a copy of it
        return None
    return Prefetcher(blocks.fill, 1, queue=LAZY_QUEUE, hot=NEVER)


def cache_roots(config: MountConfig, volume: str) -> str:
    """The cache directories of the volume as `.config` shows them; empty without a cache, `memory` for one in RAM."""
    if not config.cache_size:
        return ""
    found = _directories(config)
    return MEMORY if MEMORY in found else ":".join(f"{path}/{volume}" for path in found)


def _directories(config: MountConfig) -> tuple[str, ...]:
    return directories(config.cache_dir or default_directory())


def _cache(config: MountConfig, setting: Setting) -> LocalCache | None:
    if not config.cache_size:
        return None
    found = _directories(config)
    if not found:
        log.warning("no directory matches cache-dir %s: nothing is cached on disk", config.cache_dir)
        return None
    if MEMORY in found:
        size = config.cache_size if config.cache_size != _DEFAULT_SIZE else config.buffer_size
        return MemoryCache(
            size,
            block_size=setting.block_size,
            partial_only=config.cache_partial_only,
            large_write=config.cache_large_write,
        )
    options = CacheOptions(
        found,
        size=config.cache_size,
        items=config.cache_items,
        free_ratio=config.free_space_ratio,
        mode=config.cache_mode,
        checksum=config.verify_cache_checksum,
        eviction=config.cache_eviction,
        scan_interval=config.cache_scan_interval,
        expire=config.cache_expire,
        partial_only=config.cache_partial_only,
        large_write=config.cache_large_write,
        eager=bool(config.cache_dir),
    )
    return DiskCache(options, setting.uuid, block_size=setting.block_size, hash_prefix=setting.hash_prefix)
