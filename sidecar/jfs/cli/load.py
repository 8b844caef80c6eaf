"""`jfs load META-URL [FILE]`: a dump into an empty database; with --stat what a binary dump holds."""

import argparse
import asyncio
import contextlib
import gzip
import io
import sys
from collections.abc import Iterator
from typing import IO, Any

from jfs.errors import ConfigError

_GZIP = b"\x1f\x8b"
_EXAMPLES = """\
examples:
  jfs load redis://localhost/1 meta.json.gz
  jfs load postgres://localhost/jfs meta.bin --binary
  jfs load meta.bin --binary --stat
Use the old and the new database not at the same time: both would name the same objects. Secrets that the dump does not
hold have to be given again: jfs config META-URL --secret-key …
"""


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs load",
        description="Load metadata from a file into an empty database.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="META-URL")
    parser.add_argument("file", metavar="FILE", nargs="?", help="where from (standard input)")
    parser.add_argument("--binary", action="store_true", help="the file is a binary dump")
    parser.add_argument("--stat", action="store_true", help="show what a binary dump holds; load nothing")
    parser.add_argument(
        "--offset",
        type=int,
        help="with --stat: -1 shows where segments begin, any other what the one that begins there holds",
    )
    parser.add_argument("--encrypt-rsa-key", default="", metavar="FILE", help="the key of an encrypted backup")
    parser.add_argument("--encrypt-algo", default="aes256gcm-rsa", help="how it is encrypted (aes256gcm-rsa)")
    parser.add_argument("--threads", type=int, default=10, metavar="N", help="transactions at once (10)")
    options = parser.parse_intermixed_args(arguments)
    if options.threads < 1:
        raise ConfigError("load --threads: give at least 1")
    if options.offset is not None and not options.stat:
        raise ConfigError("load --offset belongs to --stat, which shows a binary dump and loads nothing")
    from jfs.cli.environment import take_meta_password, take_rsa_passphrase

    try:
        if options.stat:
            path = options.file or options.url
            return (
                _stat(path, offsets=options.offset == -1)
                if options.offset in (None, -1)
                else _detail(path, options.offset)
            )
        return asyncio.run(_load(options, take_meta_password(), take_rsa_passphrase()))
    except ModuleNotFoundError as error:
        raise ConfigError(f"load needs the package {error.name}; install juicefs-sidecar[dump]") from error


@contextlib.contextmanager
def _source(path: str | None, key: str, algorithm: str, passphrase: str) -> Iterator[IO[bytes]]:
    try:
        with open(path, "rb") if path else contextlib.nullcontext(io.BytesIO(sys.stdin.buffer.read())) as raw:
            file: Any = raw
            if key:
                file = io.BytesIO(_decrypted(raw.read(), key, algorithm, passphrase))
            head = file.read(2)
            file.seek(0)
            if head == _GZIP:
                with gzip.GzipFile(fileobj=file) as plain:
                    yield plain  # type: ignore[misc]
            else:
                yield file
    except EOFError as error:
        raise ConfigError(f"{path or 'standard input'} is cut off: it is an incomplete .gz file") from error
    except OSError as error:
        raise ConfigError(f"{path or 'standard input'} cannot be read: {error.strerror or error}") from error


def _decrypted(sealed: bytes, key: str, algorithm: str, passphrase: str) -> bytes:
    from jfs.object.encryption import Sealed, load

    with open(key, encoding="utf-8") as file:
        pem = file.read()
    try:
        return bytes(load(pem, algorithm, passphrase, "the backup").open(sealed))
    except Sealed as error:
        raise ConfigError(f"the backup cannot be decrypted with {key}: {error}") from error


def _stat(path: str, *, offsets: bool) -> int:
    from jfs.dump import binary

    with _source(path, "", "", "") as file:
        found = binary.footer(file)
    print(f"Backup Version: {found.version}")
    line = "-" * (34 if offsets else 23)
    print(f"{line}\n{'Name':<10}| {'Num':<10}{'| Offset    ' if offsets else ''}\n{line}")
    for name in sorted(found.infos):
        info = found.infos[name]
        places = f"[{' '.join(map(str, info.offset))}]"
        print(f"{name:<10}| {info.num:<10}|{f' {places:<10}' if offsets else ''}")
    return 0


def _detail(path: str, offset: int) -> int:
    """One segment, in the words of the real client."""
    import json

    from google.protobuf.json_format import MessageToDict

    from jfs.dump import binary

    with _source(path, "", "", "") as file:
        name, message = binary.segment_at(file, offset)
    if name == "format":
        text = json.dumps(json.loads(message.data), indent="")
    else:
        members = MessageToDict(message)
        for shown, one in zip(members.get("xattrs", ()), message.xattrs, strict=True):  # a string there, bytes here
            shown["name"] = one.name.decode("utf-8", "backslashreplace")
        text = json.dumps(members, indent=2, ensure_ascii=False)
    print(f"Segment: {name}\nValue: {text}")
    return 0


async def _load(options: argparse.Namespace, password: str, passphrase: str) -> int:
    from jfs.cli.progress import Progress
    from jfs.meta.connect import connect

    store = await connect(options.url, password=password)
    try:
        source = _source(options.file, options.encrypt_rsa_key, options.encrypt_algo, passphrase)
        with source as file, Progress("records") as progress:
            if options.binary:
                from jfs.dump import binary

                await binary.load(store, file, progress.advance, together=options.threads)
            else:
                from jfs.dump import reader

                await reader.load(store, file, progress.advance, together=options.threads)
    finally:
        await store.close()
    return 0
