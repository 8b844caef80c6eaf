"""`jfs dump META-URL [FILE]`: the metadata of a volume as JSON or, with --binary, in the compact form, to a file or standard output.

A file is written beside its name and renamed when it is whole. Its name ending in .gz has it compressed.
"""

import argparse
import asyncio
import contextlib
import gzip
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, Final

from jfs.errors import ConfigError, VolumeError

_EXAMPLES = """\
examples:
  jfs dump redis://localhost/1 meta.json.gz
  jfs dump redis://localhost/1 --subdir /projects > projects.json
  jfs dump postgres://localhost/jfs meta.bin --binary
`jfs load` brings a dump into an empty database, of the same or another engine. The objects stay where they are.
"""
_WITHOUT_EFFECT: Final = "changes nothing, a dump is one pass over the database that holds a page of it in memory"


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs dump",
        description="Write the metadata of a volume into a file.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="META-URL")
    parser.add_argument("file", metavar="FILE", nargs="?", help="where to (standard output); .gz has it compressed")
    parser.add_argument("--subdir", default="", help="only this directory and what is below it")
    parser.add_argument(
        "--keep-secret-key", action="store_true", help="keep secrets in the setting: guard the file well"
    )
    parser.add_argument("--skip-trash", action="store_true", help="without what is in the trash")
    parser.add_argument("--binary", action="store_true", help="the compact binary form, always of the whole volume")
    parser.add_argument("--fast", action="store_true", help=f"accepted; {_WITHOUT_EFFECT}")
    parser.add_argument("--threads", type=int, metavar="N", help=f"accepted; {_WITHOUT_EFFECT}")
    options = parser.parse_intermixed_args(arguments)
    given = [name for name, set_ in (("--fast", options.fast), ("--threads", options.threads is not None)) if set_]
    if given:
        print(f"jfs dump: {' and '.join(given)}: {_WITHOUT_EFFECT}", file=sys.stderr)
    from jfs.cli.environment import take_meta_password

    try:
        return asyncio.run(_dump(options, take_meta_password()))
    except ModuleNotFoundError as error:
        raise ConfigError(f"dump --binary needs the package {error.name}; install juicefs-sidecar[dump]") from error


@contextlib.contextmanager
def _destination(path: str | None) -> Iterator[IO[bytes]]:
    if not path:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = f"{path}.part"
    try:
        # Only its owner may read what may hold secrets.
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as raw:
            if path.endswith(".gz"):
                with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
                    yield file  # type: ignore[misc]
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


async def _dump(options: argparse.Namespace, password: str) -> int:
    from jfs.cli.progress import Progress
    from jfs.dump.writer import Dump
    from jfs.format.constants import ROOT
    from jfs.format.usable import check_versions
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting

    store = await connect(options.url, password=password)
    try:
        setting = await load_setting(store)
        check_versions(setting)
        with _destination(options.file) as file, Progress("records" if options.binary else "entries") as progress:
            if options.binary:
                from jfs.dump import binary

                await binary.write(store, setting, file, keep_secrets=options.keep_secret_key, written=progress.advance)
                return 0
            root = await _directory(store, options.subdir) if options.subdir.strip("/") else ROOT
            dump = Dump(store, setting, root=root, keep_secrets=options.keep_secret_key, skip_trash=options.skip_trash)
            before = 0
            async for piece in dump.encoded():
                file.write(piece)
                progress.advance(dump.entries - before)
                before = dump.entries
    finally:
        await store.close()
    return 0


async def _directory(store: Any, path: str) -> int:
    """The inode of a directory of the volume."""
    from jfs.format.constants import DIRECTORY
    from jfs.meta.volume.paths import find

    found = await find(store, os.fsencode(path))
    if found is None or found.kind != DIRECTORY:
        raise VolumeError(f"the volume has no directory {path}")
    return found.ino
