"""`jfs fsck META-URL`: every contradiction in a volume's metadata and every block that is missing or of a wrong size; with --repair what
follows from the rest is put right. Exit status 1 while damage is left (format §13). Lines are those of the real client where it has
one for the case."""

import argparse
import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from jfs.errors import ConfigError, JfsError

if TYPE_CHECKING:
    from jfs.check import Damage
    from jfs.check.facts import Facts
    from jfs.check.objects import Block, Expectation, Lost
    from jfs.check.paths import Paths
    from jfs.check.verify import ContentCheck
    from jfs.format.setting import Setting
    from jfs.meta.store.base import Store
    from jfs.object.base import ObjectStorage

log = logging.getLogger("jfs.fsck")
_AT_ONCE: Final = 20
_UUID_OBJECT: Final = "juicefs_uuid"


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs fsck",
        description="Check the consistency of a volume: its metadata against themselves, its blocks against the metadata.",
        epilog="example: jfs fsck redis://host:6379/1 --path /d1/d2 --recursive --repair",
    )
    parser.add_argument("url", metavar="META-URL")
    parser.add_argument("--path", default="", help="absolute path in the volume: check it only")
    parser.add_argument("-r", "--recursive", action="store_true", help="with --path: and everything below it")
    parser.add_argument("--repair", action="store_true", help="put right what can be without a guess")
    parser.add_argument(
        "--repair-dir-mode", default="0755", metavar="MODE", help="of directories whose attributes are lost (octal)"
    )
    parser.add_argument(
        "--sync-dir-stat",
        action="store_true",
        help="demand usage stats of directories: they are always checked, and this says when the volume keeps none",
    )
    parser.add_argument("--content", action="store_true", help="read every block too, and see that it can be decoded")
    options = parser.parse_args(arguments)
    try:
        mode = int(options.repair_dir_mode, 8)
    except ValueError:
        raise ConfigError(f"--repair-dir-mode {options.repair_dir_mode!r} is no octal number") from None
    if not 0 <= mode <= 0o7777:
        raise ConfigError(f"--repair-dir-mode {options.repair_dir_mode} is out of range, 0 to 7777")
    if options.path and not options.path.startswith("/"):
        raise ConfigError("--path must be absolute: it begins with / at the volume's root")
    from jfs.cli.environment import take_meta_password, take_rsa_passphrase
    from jfs.mount import logs

    if not logging.getLogger().handlers:
        logs.to_stderr()
    return asyncio.run(_run(options, mode, take_meta_password(), take_rsa_passphrase()))


async def _run(options: argparse.Namespace, mode: int, password: str, passphrase: str) -> int:
    from jfs.format.usable import check_identity, check_usable
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting
    from jfs.object.connect import open_volume

    store = await connect(options.url, password=password)
    try:
        setting = await load_setting(store)
        check_identity(setting, setting.uuid)
        if options.repair:
            check_usable(setting)
        if options.sync_dir_stat and not setting.dir_stats:
            log.warning("dir stats is disabled, flag '--sync-dir-stat' will be ignored")
        storage = open_volume(setting, passphrase=passphrase)
        log.info("Data use %s", storage.describe())
        try:
            check = _Check(store, storage, setting, options, mode)
            sound = await check.metadata()
            sound &= await check.data()
        finally:
            await storage.close()
    finally:
        await store.close()
    if not sound:
        log.critical("check: some errors occurred, please check the log of fsck")
    return 0 if sound else 1


class _Check:
    """One run."""

    _facts: "Facts"
    _paths: "Paths"
    _expectation: "Expectation"

    def __init__(
        self, store: "Store", storage: "ObjectStorage", setting: "Setting", options: argparse.Namespace, mode: int
    ) -> None:
        self._store = store
        self._storage = storage
        self._setting = setting
        self._options = options
        self._mode = mode
        self._top = 0

    async def metadata(self) -> bool:
        """Examine, and repair when asked; whether nothing is wrong afterwards."""
        from jfs.check.examination import examine, repair
        from jfs.check.paths import Paths, inodes_of

        options = self._options
        if options.path:
            self._top = await self._resolve(options.path)
        repaired: list[Damage] = []
        if options.repair:
            repaired = await repair(
                self._store, directory_mode=self._mode, wanted=self._concerns, forms=not options.path
            )
        self._facts, found = await examine(self._store, directory_mode=self._mode)
        if options.path:
            log.info("Checked %d nodes", sum(map(self._scope(self._facts), self._facts.nodes)))
        damages = [damage for damage in found if self._concerns(self._facts, damage)]
        self._paths = Paths(self._facts)
        await self._paths.learn(self._store, inodes_of(damage.place for damage in (*damages, *repaired)))
        for damage in repaired:
            log.info("%s: repaired", damage.sentence(self._paths.of(damage.place)))
        for damage in damages:
            self._tell(damage)
        if self._facts.is_mounted and damages:
            log.info("the volume is mounted: what its clients are changing right now was left out")
        return all(damage.note for damage in damages)

    def _scope(self, facts: "Facts") -> Callable[[int], bool]:
        from jfs.check.verify import in_scope

        if not self._top:
            return lambda ino: True
        return in_scope(facts, self._top, recursive=self._options.recursive)

    def _concerns(self, facts: "Facts", damage: "Damage") -> bool:
        if not self._top:
            return True
        place = damage.place
        if place is None:
            return False
        return self._scope(facts)(place[0] if isinstance(place, tuple) else place)

    def _tell(self, damage: "Damage") -> None:
        path = self._paths.of(damage.place)
        sentence = damage.sentence(path)
        if damage.note:
            log.info("%s", sentence)
            return
        log.warning("%s", sentence)
        if damage.fix is not None:
            at = f"'--path {path} --repair'" if path.startswith("/") else "'--repair'"
            if damage.kind == "usage":
                at = f"'--path {path} --repair --sync-dir-stat'"
            log.warning("  it can be repaired, please re-run with %s to fix it", at)
        else:
            log.warning("  it cannot be repaired: %s", damage.remedy)

    async def _resolve(self, path: str) -> int:
        from jfs.meta.volume.paths import find

        found = await find(self._store, path.encode("utf-8", "surrogateescape"))
        if found is None:
            raise ConfigError(f"--path {path}: there is no such file or directory in volume {self._setting.name}")
        return found.ino

    async def data(self) -> bool:
        """Look for the blocks of what is in scope; whether all are there."""
        from jfs.check.objects import Expectation

        await self._check_uuid()
        self._expectation = Expectation(self._facts)
        lost, wrong, bad = await (self._some_data() if self._top else self._all_data())
        await self._paths.learn(self._store, {ino for one in lost for ino in one.inodes})
        for one in lost:
            for ino in one.inodes:
                name = one.block.key.removeprefix("chunks/")
                log.error("can't find block %s for file %s: the object does not exist", name, self._paths.of(ino))
        await self._tell_wrong(wrong, bad)
        if lost:
            broken = dict.fromkeys(ino for one in lost for ino in one.inodes)
            size = sum(
                min(self._setting.block_size, one.block.size - one.block.indx * self._setting.block_size)
                for one in lost
            )
            lines = "\n".join(f"{ino:>13}: {self._paths.of(ino)}" for ino in broken)
            log.critical(
                "%d objects are lost (%d bytes), %d broken files:\n        INODE: PATH\n%s",
                len(lost),
                size,
                len(broken),
                lines,
            )
        return not (lost or wrong or bad)

    async def _check_uuid(self) -> None:
        try:
            uuid = bytes(await self._storage.get(_UUID_OBJECT)).decode("ascii", "replace").strip()
        except JfsError:
            return  # old volumes have none; an unusable storage shows at the next request
        if uuid != self._setting.uuid:
            log.warning("%s belongs to volume %s, not to %s", self._storage.describe(), uuid, self._setting.uuid)

    async def _all_data(self) -> "tuple[list[Lost], list[tuple[Block, int]], list[tuple[Block, str]]]":
        from jfs.check.objects import compare, confirm

        content = self._content_check()
        listing = await compare(
            self._storage,
            self._expectation,
            young_from=0.0,
            on_valid=content.add if content is not None else None,
        )
        if content is not None:
            await content.finish()
        lost = [one async for one in confirm(self._storage, self._store, listing.absent)]
        used = self._expectation.used()
        log.info("Found %d blocks %s", listing.found.number, listing.found)
        log.info("Used by %d slices %s", used.number, used)
        if listing.foreign:
            log.info("%d objects are no blocks, among them %s", len(listing.foreign), listing.foreign[0])
        return lost, listing.wrong_sizes, content.bad if content is not None else []

    async def _some_data(self) -> "tuple[list[Lost], list[tuple[Block, int]], list[tuple[Block, str]]]":
        from jfs.check.verify import find_blocks, look_at

        blocks, owners = await find_blocks(self._store, self._expectation, self._scope(self._facts))
        lost, wrong, size = await look_at(self._storage, self._expectation, blocks, owners, at_once=_AT_ONCE)
        content = self._content_check()
        if content is not None:
            missing = {one.block for one in lost}
            for block in blocks:
                if block not in missing:
                    await content.add(block)
            await content.finish()
        log.info("Found %d blocks (%d bytes)", len(blocks) - len(lost), size)
        log.info("Used by %d slices (%d bytes)", len(owners), sum({b.slice_id: b.size for b in blocks}.values()))
        return lost, wrong, content.bad if content is not None else []

    def _content_check(self) -> "ContentCheck | None":
        from jfs.check.verify import ContentCheck
        from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
        from jfs.format.usable import check_usable

        if not self._options.content:
            return None
        check_usable(self._setting)  # blocks of another format are not judged
        setting = self._setting
        return ContentCheck(
            BlockStore(
                self._storage,
                BlockFormat(setting.block_size, setting.compression, setting.hash_prefix),
                BlockLimits(io_retries=1, max_downloads=_AT_ONCE),
            ),
            _AT_ONCE,
        )

    async def _tell_wrong(self, wrong: "list[tuple[Block, int]]", bad: "list[tuple[Block, str]]") -> None:
        from jfs.check.objects import find_owners

        slices = {block.slice_id for block, _ in (*wrong, *bad)}
        owners = await find_owners(self._store, slices)
        await self._paths.learn(self._store, {ino for chunks in owners.values() for ino, _ in chunks})

        def files(block: "Block") -> str:
            return ", ".join(dict.fromkeys(self._paths.of(ino) for ino, _ in owners.get(block.slice_id, ())))

        for block, size in wrong:
            full = min(self._setting.block_size, block.size - block.indx * self._setting.block_size)
            log.error("block %s of file %s has %d bytes where %d are expected", block.key, files(block), size, full)
        for block, reason in bad:
            log.error("block %s of file %s is damaged: %s", block.key, files(block), reason)
