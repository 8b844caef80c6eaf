"""`jfs rmr PATH…`: has a mount remove directory trees, through its `.control` (format §8.3, §10), which is faster than `rm -r`.

`jfs rmr --stdin`: removes a directory of a volume with everything below and its objects, without a mount. For programs: the
document on standard input names the volume and the `path`. The trash is passed by then: what is removed so is meant to be gone. A
path that does not exist is success.
"""

import argparse
import asyncio
import json
import os
import struct
import sys
from typing import TYPE_CHECKING, Final

from jfs.cli.control import ask, inode
from jfs.errors import ConfigError, FsError, JfsError, VolumeError

if TYPE_CHECKING:
    from jfs.meta.volume import Meta

_USAGE: Final = """\
usage: jfs rmr [--skip-trash] [-p N] PATH…
       jfs rmr --stdin

Removes directory trees of a mount. With --stdin, one of a volume that need not be mounted: the JSON document on standard
input has the volume's addresses and secrets (metaurl, access-key, …) and the path: {"metaurl": "redis://…", "path": "/sub/dir"}

  --skip-trash        remove for good (root only)
  -p, --threads N     directories at once, 1 to 255 (50)
"""
_RMR: Final = 1002
_DRAIN_SECONDS: Final = 3600.0


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(_USAGE)
        return 0
    if arguments == ["--stdin"]:
        return asyncio.run(_from_document())
    parser = argparse.ArgumentParser(prog="jfs rmr", usage=_USAGE)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--skip-trash", action="store_true")
    parser.add_argument("-p", "--threads", type=int, default=50)
    options = parser.parse_args(arguments)
    if not 1 <= options.threads <= 255:
        raise ConfigError("--threads must be a number from 1 to 255")
    failed = 0
    for path in options.paths:
        try:
            removed = _in_mount(path, skip_trash=options.skip_trash, threads=options.threads)
        except JfsError as error:
            print(f"jfs: {error}", file=sys.stderr)
            failed = 1
        else:
            print(f"jfs: {path}: {removed} entries removed", file=sys.stderr)
    return failed


def _in_mount(path: str, *, skip_trash: bool, threads: int) -> int:
    """Ask the mount that *path* lies in; the number of entries removed. ConfigError, VolumeError."""
    parent, name = os.path.split(os.path.abspath(path))
    inode(path)
    raw = os.fsencode(name)
    body = struct.pack(">QB", inode(parent), len(raw)) + raw + bytes((skip_trash, threads))
    answer = ask(parent, _RMR, body)
    if answer.errno:
        raise VolumeError(f"{path} cannot be removed: {os.strerror(answer.errno)}")
    return answer.progress[0]


async def _from_document() -> int:
    from jfs.chunk.blocks import BlockFormat, BlockStore
    from jfs.cli import document
    from jfs.meta.connect import connect
    from jfs.meta.volume import Meta, MetaOptions, SessionInfo, load_setting

    given = document.read()
    parts = [part for part in given.path.encode().split(b"/") if part not in (b"", b".")]
    if not parts or b".." in parts:
        raise ConfigError(
            f"path {given.path!r} in the document must name something below the volume's root, without .."
        )
    store = await connect(given.metaurl, password=given.password)
    try:
        setting = await load_setting(store)
        blocks = BlockStore(
            given.open_volume(setting, names_only=True),
            BlockFormat(setting.block_size, setting.compression, setting.hash_prefix),
        )
    except BaseException:
        await store.close()
        raise
    try:
        try:
            meta = await Meta.load(
                store,
                MetaOptions(no_bgjob=True),
                delete_objects=blocks.delete_slice,
                info=SessionInfo(mount_point="jfs rmr"),
            )
        except BaseException:
            await store.close()
            raise
        try:
            await meta.start_session()
            removed = await _remove(meta, parts)
            await meta.close_session(drain=_DRAIN_SECONDS)
        finally:
            await meta.close()
    finally:
        await blocks.close()
    print(json.dumps({"removed": removed}))
    return 0


async def _remove(meta: "Meta", parts: list[bytes]) -> int:
    """Number of entries removed below and with the path of names *parts*; 0 when it is not there."""
    import errno

    from jfs.format.constants import DIRECTORY, ROOT
    from jfs.meta.volume import SUPERUSER

    at = ROOT
    path = b"/".join(parts).decode("utf-8", "replace")
    try:
        for name in parts[:-1]:
            at, attr = await meta.lookup(SUPERUSER, at, name)
            if attr.kind != DIRECTORY:
                raise VolumeError(f"/{path} cannot be removed: {name.decode('utf-8', 'replace')} is no directory")
        return await meta.remove_tree(SUPERUSER, at, parts[-1], skip_trash=True)
    except FsError as error:
        if error.errno == errno.ENOENT:
            return 0
        raise VolumeError(f"/{path} of volume {meta.setting.name} cannot be removed: {error}") from error
