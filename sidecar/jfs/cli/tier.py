"""`jfs tier list META-URL`: shows the storage tiers of a volume. A file's tier is kept in its attributes, and its new objects get the
tier's storage class and tags; giving a tier to what is there means copying its objects within the storage, which the real client does.
"""

import asyncio
import sys
from typing import Final

from jfs.errors import ConfigError

_USAGE: Final = """\
usage: jfs tier list META-URL

Shows the storage tiers of a volume: the storage class and tags that new objects of files of each tier get.
`jfs config META-URL --tier N --storage-class CLASS` sets them.
"""


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    if any(word in ("-h", "--help") for word in arguments) or not arguments:
        sys.stdout.write(_USAGE)
        return 0
    action, *words = arguments
    if action in ("set", "restore"):
        raise ConfigError(
            f"tier {action} copies the objects within the storage, which this client does not do: use `juicefs tier {action}`"
        )
    if action != "list" or len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("tier needs `list` and one META-URL")
    from jfs.cli.environment import take_meta_password

    return asyncio.run(_list(words[0], take_meta_password()))


async def _list(url: str, password: str) -> int:
    from jfs.cli.tables import table
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting

    store = await connect(url, password=password)
    try:
        setting = await load_setting(store)
    finally:
        await store.close()
    rows = [[str(number), tier.storage_class, tier.tag] for number, tier in sorted(setting.tiers.items())]
    print(table(["tier", "storageClass", "tag"], rows, "<>>"))
    return 0
