"""`jfs changelog META-URL`: follows the change log of a volume, an entry with its version in each line, until it is interrupted."""

import argparse
import asyncio
import sys

from jfs.errors import ConfigError

_EXAMPLES = """\
examples:
  jfs changelog redis://localhost
  jfs changelog redis://localhost --from 100
`jfs config META-URL --changelog` has a volume keep one.
"""


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs changelog",
        description="Show the change log of a volume, and go on with what is added to it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="META-URL")
    parser.add_argument(
        "--from",
        dest="version",
        type=int,
        default=0,
        metavar="VERSION",
        help="begin with what comes after this version (0: after the latest)",
    )
    options = parser.parse_args(arguments)
    if options.url.startswith("etcd://"):
        raise ConfigError("on etcd there is no change log, whatever the setting says")
    from jfs.cli.environment import take_meta_password

    return asyncio.run(_follow(options.url, options.version, take_meta_password()))


async def _follow(url: str, version: int, password: str) -> int:
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting
    from jfs.meta.volume.following import follow

    store = await connect(url, password=password)
    try:
        setting = await load_setting(store)
        if not setting.change_log:
            raise ConfigError("the volume keeps no change log; `jfs config META-URL --changelog` turns it on")
        async for number, line in follow(store, max(version, 0) if version else await store.last_logged()):
            sys.stdout.buffer.write(b"%d: %s\n" % (number, line))
            sys.stdout.buffer.flush()
    finally:
        await store.close()
    return 0
