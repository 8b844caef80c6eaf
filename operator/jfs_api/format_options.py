"""Options of `juicefs format` (format §10) as they stand in a Secret's `format-options` and in a JuiceFSVolume's `formatOptions`.

What names or unlocks the storage has fields of its own and is refused here, so that no secret hides in an option. Pure functions.
"""

from collections.abc import Mapping
from typing import Final

from jfs_api.options import Kind, Option, parse

KNOWN: Final[Mapping[str, Kind | frozenset[str]]] = {
    "storage-class": Kind.TEXT,
    "tag": Kind.TEXT,
    "block-size": Kind.SIZE,
    "compress": frozenset({"none", "lz4", "zstd"}),
    "shards": Kind.COUNT,
    "hash-prefix": Kind.FLAG,
    "encrypt-algo": frozenset({"aes256gcm-rsa", "chacha20-rsa"}),
    "capacity": Kind.SIZE,
    "inodes": Kind.COUNT,
    "trash-days": Kind.COUNT,
    "enable-acl": Kind.FLAG,
    "no-update": Kind.FLAG,
}

_FIELDS: Final = frozenset(["storage", "bucket", "access-key", "secret-key", "session-token", "encrypt-rsa-key"])
_LATER: Final = frozenset(["ranger-rest-url", "ranger-service", "kerberos-config-file"])


def _refuse(name: str) -> str | None:
    if name in _FIELDS:
        return "this has a key of its own in the Secret"
    if name == "force":
        return "a volume is never formatted over another one"
    if name in _LATER:
        return "this is for Hadoop clients and not supported"
    return None


def parse_format_options(text: str) -> list[Option]:
    """The options of a text `key=value,flag,…` (also with blanks or `--`, as JuiceFS CSI takes them). Raises OptionError."""
    items = [item.removeprefix("--") for item in text.replace(",", " ").split() if item]
    return parse(items, KNOWN, what="format option", refuse=_refuse)


def merge_format_options(base: str, override: Mapping[str, str]) -> str:
    """One text of both, `override` winning: the Secret's options below those of the JuiceFSVolume. Raises OptionError."""
    merged = {option.name: option for option in parse_format_options(base)}
    for option in parse(
        [f"{name}={value}" if value else name for name, value in override.items()],
        KNOWN,
        what="format option",
        refuse=_refuse,
    ):
        merged[option.name] = option
    return ",".join(str(option) for option in merged.values())
