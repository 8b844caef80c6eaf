"""`jfs destroy META-URL UUID`: removes a volume for ever, its objects first and its metadata last (format §9.1, §10.2).

The UUID must be the volume's, and no session may be active unless forced. Killed between, it can be repeated: as long as a
record is left, so are the setting and with it the way to the objects. With `--stdin` (for programs) a database that holds
no volume any more is success.
"""

import argparse
import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Final

from jfs.errors import ConfigError

if TYPE_CHECKING:
    from jfs.format.setting import Setting
    from jfs.object.base import ObjectStorage

_AT_ONCE: Final = 50


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    if arguments == ["--stdin"]:
        return asyncio.run(_from_document())
    parser = argparse.ArgumentParser(
        prog="jfs destroy",
        description="Remove a volume with all its data and metadata. This cannot be undone.",
        epilog="example: jfs destroy redis://host:6379/1 e94d66a8-2339-4abd-b8d8-6812df737892",
    )
    parser.add_argument("url", metavar="META-URL")
    parser.add_argument("uuid", metavar="UUID", help="of the volume, as `jfs status` shows it")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--force", action="store_true", help="also when the volume is mounted")
    parser.add_argument("--stdin", action="store_true", help="take a JSON document from standard input; stands alone")
    options = parser.parse_args(arguments)
    if options.stdin:
        parser.error("--stdin stands alone")
    if not options.yes:
        _confirm(options.uuid)
    from jfs.cli.environment import take_meta_password

    return asyncio.run(_destroy(options.url, take_meta_password(), options.uuid, options.force))


def _confirm(uuid: str) -> None:
    """Ask at a terminal; ConfigError when nobody can be asked or the answer is not yes."""
    if not sys.stdin.isatty():
        raise ConfigError("jfs destroy asks before it removes anything: give --yes when nobody can answer")
    answer = input(f"Everything in volume {uuid} will be removed for ever. Type yes to go on: ")
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was removed")


async def _destroy(url: str, password: str, uuid: str, force: bool) -> int:
    from jfs.meta.connect import connect
    from jfs.meta.volume import destroy
    from jfs.object.connect import open_volume

    async def delete_objects(setting: "Setting") -> None:
        await remove_objects(open_volume(setting, names_only=True))

    store = await connect(url, password=password)
    try:
        await destroy(store, uuid, force=force, now=time.time_ns(), delete_objects=delete_objects)
    finally:
        await store.close()
    print(f"jfs: volume {uuid} is destroyed", file=sys.stderr)
    return 0


async def _from_document() -> int:
    from jfs.cli import document
    from jfs.meta.connect import connect
    from jfs.meta.volume import destroy, existing_setting

    given = document.read()
    if not given.uuid:
        raise ConfigError("the document has no uuid, that of the volume to destroy")

    async def delete_objects(setting: "Setting") -> None:
        await remove_objects(given.open_volume(setting, names_only=True))

    store = await connect(given.metaurl, password=given.password)
    try:
        there = await existing_setting(store) is not None
        if there:
            await destroy(store, given.uuid, force=given.force, now=time.time_ns(), delete_objects=delete_objects)
    finally:
        await store.close()
    print(json.dumps({"destroyed": there}))
    return 0


async def remove_objects(storage: "ObjectStorage") -> None:
    """Delete every object of a volume, `juicefs_uuid` last, and close the storage. ObjectError of the first that cannot be."""
    from jfs.cli.formatting import UUID_OBJECT

    try:
        batch: list[str] = []
        async for info in storage.list():
            if info.key == UUID_OBJECT:
                continue
            batch.append(info.key)
            if len(batch) == _AT_ONCE:
                await asyncio.gather(*map(storage.delete, batch))
                batch.clear()
        await asyncio.gather(*map(storage.delete, batch))
        await storage.delete(UUID_OBJECT)
        await storage.remove_bucket_parts("")
    finally:
        await storage.close()
