"""`jfs gc META-URL`: objects that belong to nothing, slices and files that wait for their deletion; with --delete they are removed, with
--compact fragmented chunks are rewritten. Exit status 1 while something is leaked (the real client has 0). The summary line is
the real client's; objects younger than an hour (JFS_GC_SKIPPEDTIME seconds) are skipped where they seem leaked, since a client
may be about to commit them."""

import argparse
import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Final

from jfs.errors import ConfigError

if TYPE_CHECKING:
    from jfs.check import Damage
    from jfs.check.facts import Facts
    from jfs.check.objects import Listing, Tally
    from jfs.chunk.blocks import BlockStore
    from jfs.format.setting import Setting
    from jfs.meta.store.base import Store

log = logging.getLogger("jfs.gc")
_DRAIN_SECONDS: Final = 3600.0
_SKIPPED_TIME: Final = "JFS_GC_SKIPPEDTIME"
_DAY: Final = 86400


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs gc",
        description="Find objects that no file uses. Without an option nothing is changed.",
        epilog="example: jfs gc redis://host:6379/1 --delete",
    )
    parser.add_argument("url", metavar="META-URL")
    parser.add_argument("--compact", action="store_true", help="rewrite fragmented chunks as one slice each")
    parser.add_argument("--delete", action="store_true", help="delete what is leaked, and what waits for its deletion")
    parser.add_argument("-p", "--threads", type=int, default=10, metavar="N", help="requests at once (10)")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        raise ConfigError("--threads must be 1 or more")
    skipped = os.environ.get(_SKIPPED_TIME, "3600")
    if not skipped.isdigit():
        raise ConfigError(f"{_SKIPPED_TIME} must be a number of seconds, not {skipped!r}")
    from jfs.cli.environment import take_meta_password, take_rsa_passphrase
    from jfs.mount import logs

    if not logging.getLogger().handlers:
        logs.to_stderr()
    return asyncio.run(_run(options, int(skipped), take_meta_password(), take_rsa_passphrase()))


async def _run(options: argparse.Namespace, skipped: int, password: str, passphrase: str) -> int:
    from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
    from jfs.format.usable import check_identity, check_usable
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting
    from jfs.object.connect import open_volume

    store = await connect(options.url, password=password)
    try:
        setting = await load_setting(store)
        check_identity(setting, setting.uuid)
        if options.delete or options.compact:
            check_usable(setting)
        blocks = BlockStore(
            open_volume(setting, passphrase=passphrase),
            BlockFormat(setting.block_size, setting.compression, setting.hash_prefix),
            BlockLimits(max_uploads=options.threads, max_downloads=max(options.threads, 4)),
        )
        try:
            log.info("Data use %s", blocks.storage.describe())
            await _check_owner(blocks, setting, deleting=options.delete)
            return await _collect(store, setting, blocks, options, skipped)
        finally:
            await blocks.close()
    finally:
        await store.close()


async def _check_owner(blocks: "BlockStore", setting: "Setting", *, deleting: bool) -> None:
    """VolumeError when objects are to be deleted in the storage of another volume; a warning when they are only looked at."""
    from jfs.errors import ObjectNotFound, VolumeError

    try:
        uuid = bytes(await blocks.storage.get("juicefs_uuid")).decode("ascii", "replace").strip()
    except ObjectNotFound:  # volumes of old clients have none
        return
    if uuid != setting.uuid:
        text = f"{blocks.storage.describe()} belongs to volume {uuid}, not to {setting.name} ({setting.uuid})"
        if deleting:
            raise VolumeError(f"{text}: nothing was deleted")
        log.warning("%s", text)


async def _collect(
    store: "Store", setting: "Setting", blocks: "BlockStore", options: argparse.Namespace, skipped: int
) -> int:
    from jfs.check.collect import count_delayed, is_leak
    from jfs.check.examination import examine
    from jfs.check.objects import NOTHING, Expectation, compare
    from jfs.check.verify import Bounded

    began = time.time()
    edge = int(began) - setting.trash_days * _DAY
    files, delayed = NOTHING, NOTHING
    if options.compact or options.delete:
        files, delayed = await _change(store, blocks, options, edge)
    facts, damages = await examine(store)
    leaks = [damage for damage in damages if is_leak(facts, damage)]
    await _tell(store, facts, leaks)
    if not options.delete:
        delayed = await count_delayed(store, edge)
        for length, _ in facts.queued.values():
            files = files.plus(length)
    expectation = Expectation(facts)
    used = expectation.used()
    log.info("using %d slices %s", used.number, used)
    deletions = Bounded(options.threads)

    async def delete(key: str) -> None:
        await deletions.add(blocks.storage.delete(key))

    deleting = options.delete and not facts.torn_lists
    listing = await compare(
        blocks.storage, expectation, young_from=began - skipped, on_leaked=delete if deleting else None
    )
    await deletions.finish()
    _report(listing, delayed, files)
    if listing.leaked.number and not options.delete:
        log.info("Please add `--delete` to clean leaked objects")
    if listing.leaked.number and options.delete and not deleting:
        log.warning("leaked objects are not deleted: a chunk list that cannot be read may name them, see `jfs fsck`")
    left = 0 if deleting else listing.leaked.number
    return 1 if left or leaks else 0


def _report(listing: "Listing", delayed: "Tally", files: "Tally") -> None:
    log.info(
        "scanned %d objects, %d valid, %d pending delete %s, %d compacted %s, %d leaked %s, %d delslices %s, "
        "%d delfiles %s, %d skipped %s",
        listing.found.number - len(listing.foreign),
        listing.valid.number,
        listing.pending.number,
        listing.pending,
        listing.compacted.number,
        listing.compacted,
        listing.leaked.number,
        listing.leaked,
        delayed.number,
        delayed,
        files.number,
        files,
        listing.skipped.number,
        listing.skipped,
    )
    if listing.foreign:
        log.info("%d objects are no blocks, among them %s", len(listing.foreign), listing.foreign[0])


async def _tell(store: "Store", facts: "Facts", leaks: "list[Damage]") -> None:
    from jfs.check.paths import Paths, inodes_of

    paths = Paths(facts)
    await paths.learn(store, inodes_of(damage.place for damage in leaks))
    for damage in leaks:
        log.warning("%s", damage.sentence(paths.of(damage.place)))


async def _change(
    store: "Store", blocks: "BlockStore", options: argparse.Namespace, edge: int
) -> "tuple[Tally, Tally]":
    """Compact and delete as the options say; the deleted files and delayed slices."""
    from jfs.check.collect import compact_all, delete_delayed, delete_files, delete_pending, is_leak
    from jfs.check.examination import examine, repair
    from jfs.check.objects import NOTHING
    from jfs.chunk.compaction import SliceCopier
    from jfs.meta.volume import Meta, MetaOptions
    from jfs.meta.volume.deletion import Deletion

    copier = SliceCopier(blocks)
    meta = await Meta.load(
        store,
        MetaOptions(no_bgjob=True, max_deletes=options.threads),
        delete_objects=blocks.delete_slice,
        copy_slice=copier.copy,
    )
    deletion = Deletion(store, blocks.delete_slice, options.threads)
    if options.compact:
        compaction = meta.compaction()
        try:
            done = await compact_all(store, compaction, min(options.threads, 10))
        finally:
            await compaction.close()
        log.info("Compacted %d chunks (%d slices, %d bytes).", done.chunks, done.slices, done.bytes)
        if done.failed:
            log.warning("%d chunks could not be compacted: their blocks cannot be read", done.failed)
    files = delayed = NOTHING
    if options.delete:
        abandoned = await meta.drop_abandoned(int(time.time()) - _DAY)
        await meta.close_session(drain=_DRAIN_SECONDS)  # the deletions that this began
        if abandoned:
            log.info("Deleted %d clones that were not finished", abandoned)
        facts, _ = await examine(store)
        files = await delete_files(deletion, facts)
        delayed = await delete_delayed(store, meta.jobs(), edge)
        for damage in await repair(store, wanted=is_leak, forms=False):
            log.info("%s: deleted", damage.sentence(f"inode {damage.place}"))
    pending = await delete_pending(store, deletion)
    log.info("Deleted %d pending slices", pending)
    return files, delayed
