"""`jfs tier list | set | restore META-URL`: the storage tiers of a volume (format §2.2), without a mount.

A file's tier is kept in its attributes, and its new objects get the tier's storage class and tags. `set` gives them to the objects
that are there; `restore` has archived objects made readable for some days.
"""

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING, Final

from jfs.errors import ConfigError

if TYPE_CHECKING:
    from jfs.format.setting import Setting
    from jfs.meta.model.attr import Entry
    from jfs.meta.store.base import Store

_EXAMPLES: Final = """\
examples:
  jfs config redis://localhost --tier 1 --storage-class STANDARD_IA
  jfs tier list redis://localhost
  jfs tier set redis://localhost --tier 1 /dir -r
  jfs tier set redis://localhost --tier 0 /file
  jfs tier restore redis://localhost /file --days 7
"""
_LAST: Final = 3


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs tier",
        description="Show the storage tiers of a volume, give files another one, or make archived files readable.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("list", "set", "restore"))
    parser.add_argument("url", metavar="META-URL")
    parser.add_argument("path", metavar="PATH", nargs="?", help="set, restore: a file or directory of the volume")
    parser.add_argument("--tier", type=int, metavar="N", help="set: the tier, 0 to 3; 0 is that of files without one")
    parser.add_argument("-r", "--recursive", action="store_true", help="set: also everything below the directory")
    parser.add_argument(
        "-f", "--force", action="store_true", help="set: also what has the tier already, whose class has been changed"
    )
    parser.add_argument("--days", type=int, default=3, metavar="N", help="restore: how long they stay readable (3)")
    options = parser.parse_intermixed_args(arguments)
    action = options.action
    if (action == "list") == (options.path is not None):
        raise ConfigError(
            "tier list takes one META-URL" if action == "list" else f"tier {action} needs META-URL and PATH"
        )
    if action == "set" and options.tier is None:
        raise ConfigError("tier set needs --tier N")
    if options.tier is not None and not 0 <= options.tier <= _LAST:
        raise ConfigError(f"--tier {options.tier}: there are tiers 0 to {_LAST}")
    if options.days < 1:
        raise ConfigError("--days must be 1 or more")
    for name, given in (("--tier", options.tier is not None), ("-r", options.recursive), ("-f", options.force)):
        if given and action != "set":
            raise ConfigError(f"{name} belongs to tier set")
    from jfs.cli.environment import take_meta_password

    return asyncio.run(_run(options, take_meta_password()))


async def _run(options: argparse.Namespace, password: str) -> int:
    from jfs.format.usable import check_usable
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting
    from jfs.meta.volume.session import keep_change_log

    store = await connect(options.url, password=password)
    try:
        setting = await load_setting(store)
        if options.action == "list":
            _list(setting)
            return 0
        check_usable(setting)
        keep_change_log(store, setting)
        return await _change(options, store, setting)
    finally:
        await store.close()


def _list(setting: "Setting") -> None:
    from jfs.cli.tables import table

    rows = [[str(number), tier.storage_class, tier.tag] for number, tier in sorted(setting.tiers.items())]
    print(table(["tier", "storageClass", "tag"], rows, "<>>"))


async def _change(options: argparse.Namespace, store: "Store", setting: "Setting") -> int:
    from jfs.format.constants import DIRECTORY
    from jfs.object.connect import open_volume
    from jfs.vfs.tiers import Tiers

    found = await _find(store, options.path)
    if options.action == "set" and options.tier and options.tier not in setting.tiers:
        raise ConfigError(
            f"the volume has no tier {options.tier}: `jfs config META-URL --tier {options.tier}` makes one"
        )
    if options.recursive and found.kind != DIRECTORY:
        raise ConfigError(f"{options.path} is no directory: -r is for one")
    storage = open_volume(setting, names_only=True)
    try:
        tiers = Tiers(store, storage, setting)
        if options.action == "restore":
            await tiers.thaw(found.ino, options.days)
            print(
                f"jfs: asked {storage.describe()} for {tiers.objects} objects of {tiers.inodes} files", file=sys.stderr
            )
        else:
            await tiers.change(found.ino, options.tier, recursive=options.recursive, force=options.force)
            print(f"jfs: set tier {options.tier} of {tiers.inodes} files and directories", file=sys.stderr)
    finally:
        await storage.close()
    return 0


async def _find(store: "Store", path: str) -> "Entry":
    from jfs.format.constants import DIRECTORY, FILE, TRASH
    from jfs.meta.volume.paths import find

    found = await find(store, os.fsencode(path))
    if found is None:
        raise ConfigError(f"the volume has no file or directory {path}")
    if found.kind not in (DIRECTORY, FILE) or found.ino >= TRASH:
        raise ConfigError(f"{path} can have no tier: only files and directories outside of the trash have one")
    return found
