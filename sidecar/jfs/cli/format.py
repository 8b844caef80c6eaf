"""`jfs format META-URL NAME`: creates a volume, or changes the setting of one (format §2.3, §10). `--stdin` is for programs."""

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Final

from jfs.errors import ConfigError

if TYPE_CHECKING:
    from jfs.cli.format_options import FormatOptions

_USAGE: Final = """\
usage: jfs format [options] META-URL NAME

Creates the volume NAME with its metadata in META-URL (redis://, rediss://, sqlite3://) and its data in an object storage; or
changes the given settings of the volume that is there.

Examples:
  # a volume in a local file and a local directory
  jfs format sqlite3://myjfs.db myjfs
  # Redis and S3, with secrets in the environment
  export META_PASSWORD=… ACCESS_KEY=… SECRET_KEY=…
  jfs format redis://host:6379/1 myjfs --storage s3 --bucket https://s3.example.com/mybucket
  # a Redis Cluster; the number is the volume's place in it
  jfs format redis://host1:6379,host2:6379/1 myjfs --storage s3 --bucket https://s3.example.com/mybucket
  # at most 100 GiB, without trash
  jfs format sqlite3://myjfs.db myjfs --capacity 100 --trash-days 0
  # encrypted; the passphrase of the key is needed by every mount, too
  openssl genrsa -aes256 -out key.pem 2048
  export JFS_RSA_PASSPHRASE=…
  jfs format sqlite3://myjfs.db myjfs --encrypt-rsa-key key.pem

options:
"""


def _help() -> str:
    from jfs.cli.format_options import REFUSED, SWITCHES, VALUES

    lines = [_USAGE.rstrip("\n")]
    for name, (_, parse, text) in VALUES.items():
        lines.append(f"  {'--' + name + (' VALUE' if parse else ''):<24}{text}")
    lines += [f"  {'--' + name:<24}{text}" for name, text in SWITCHES.items()]
    lines.append(
        f"  {'--stdin':<24}take a JSON document with addresses and secrets from standard input, answer in JSON"
    )
    lines += ["", "not supported: " + ", ".join(f"--{name}" for name in REFUSED)]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(_help())
        return 0
    if arguments == ["--stdin"]:
        return asyncio.run(_from_document())
    from jfs.cli.environment import take_meta_password, take_rsa_passphrase, take_storage_keys
    from jfs.cli.format_options import collect, split_arguments

    words, pairs = split_arguments(arguments)
    if len(words) != 2:
        raise ConfigError("jfs format needs two arguments: META-URL NAME; see `jfs format --help`")
    options = collect([*take_storage_keys().items(), *pairs])
    return asyncio.run(_format(words[0], words[1], options, take_meta_password(), take_rsa_passphrase()))


async def _format(url: str, name: str, options: "FormatOptions", password: str, passphrase: str) -> int:
    from jfs.cli.formatting import format_store, plan
    from jfs.meta.connect import connect

    fresh = plan(name, options, passphrase=passphrase)
    store = await connect(url, password=password)
    try:
        done = await format_store(store, fresh, options, passphrase=passphrase)
    finally:
        await store.close()
    setting = done.setting
    if not done.created and not done.changed:
        print(f"jfs: volume {setting.name} ({setting.uuid}) exists already, nothing was changed", file=sys.stderr)
        return 0
    verb = "formatted" if done.created else "changed"
    print(f"jfs: volume {setting.name} is {verb}, its data are in {done.place}", file=sys.stderr)
    print(json.dumps(setting.redacted(), indent=2, ensure_ascii=False), file=sys.stderr)
    return 0


async def _from_document() -> int:
    from jfs.cli import document
    from jfs.cli.format_options import collect, split_list
    from jfs.cli.formatting import format_store, plan
    from jfs.meta.connect import connect

    given = document.read()
    if not given.name:
        raise ConfigError("the document has no name, that of the volume")
    listed = split_list(given.format_options)
    if any(name == "encrypt-rsa-key" for name, _ in listed):
        raise ConfigError(
            "format-options cannot name a file for encrypt-rsa-key: give the key itself as encrypt_rsa_key"
        )
    options = collect([*listed, *given.storage_options()])
    if given.encrypt_rsa_key:
        options.members["encrypt_key"] = given.encrypt_rsa_key
    fresh = plan(given.name, options, given.uuid, passphrase=given.passphrase)
    store = await connect(given.metaurl, password=given.password)
    try:
        done = await format_store(store, fresh, options, keep_existing=True, passphrase=given.passphrase)
    finally:
        await store.close()
    print(json.dumps({"name": done.setting.name, "uuid": done.setting.uuid, "formatted": done.created}))
    return 0
