"""`jfs restore META-URL HOUR…`: takes what was removed in an hour out of the trash (format §3.13, §10), without a mount."""

import argparse
import asyncio
import os
import re
import sys
from typing import Final

from jfs.errors import ConfigError, FsError

_HOUR: Final = re.compile(r"\d{4}-\d{2}-\d{2}-\d{2}")


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs restore",
        description="Build the trees removed in an hour again inside the trash, or put everything back where it was.",
    )
    parser.add_argument("url", metavar="META-URL")
    parser.add_argument("hours", metavar="HOUR", nargs="+", help="directory of the trash: YYYY-MM-DD-HH, in UTC")
    parser.add_argument("--put-back", action="store_true", help="move everything to the directory it was removed from")
    parser.add_argument("--threads", type=int, default=10, metavar="N", help="entries at once (10)")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        raise ConfigError("--threads must be 1 or more")
    for hour in options.hours:
        if not _HOUR.fullmatch(hour):
            raise ConfigError(f"{hour!r} is no hour of the trash; write it like 2026-01-31-23")
    if os.geteuid():
        raise ConfigError("only root may restore from the trash: run it as root")
    from jfs.cli.environment import take_meta_password

    return asyncio.run(_restore(options, take_meta_password()))


async def _restore(options: argparse.Namespace, password: str) -> int:
    from jfs.meta.connect import connect
    from jfs.meta.volume import Meta, MetaOptions
    from jfs.meta.volume.restoring import restore_hour

    meta = await Meta.load(
        await connect(options.url, password=password), MetaOptions(no_bgjob=True), delete_objects=_delete_nothing
    )
    status = 0
    try:
        for hour in options.hours:
            try:
                done = await restore_hour(meta, hour.encode(), put_back=options.put_back, at_once=options.threads)
            except FsError as error:
                print(f"jfs: {hour} of the trash cannot be restored: {error}", file=sys.stderr)
                status = 1
                continue
            for entry, reason in done.failed:
                print(f"jfs: {hour}/{os.fsdecode(entry)} was not restored: {reason}", file=sys.stderr)
            left = f", {done.left} left" if done.left else ""
            print(f"jfs: {hour}: {done.moved} entries restored{left}, {len(done.failed)} failed", file=sys.stderr)
            status |= bool(done.failed)
    finally:
        await meta.close()
    return status


async def _delete_nothing(slice_id: int, size: int) -> None:
    """A restore replaces nothing, so no data is freed."""
