"""The options of `format` (format §10), from a command line or a document, as members of the setting record.

An option is used or refused by name. Only what was given becomes a member, so that formatting again changes nothing else;
`new_setting` has the defaults. Pure, but for reading the file of a private key.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from jfs.errors import ConfigError
from jfs.format.setting import COMPRESSIONS, ENCRYPTIONS, check_block_size
from jfs.mount.units import size


class FormatOptions(NamedTuple):
    """Given arguments of `new_setting` by name, and the two switches."""

    members: dict[str, Any]
    force: bool = False
    no_update: bool = False


def _text(option: str, text: str) -> str:
    return text


def _count(option: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise ConfigError(f"option {option}: {text!r} is not a whole number")
    return int(text)


def _gibibytes(option: str, text: str) -> int:
    return size(option, text, "G")


def _block_size(option: str, text: str) -> int:
    return check_block_size(size(option, text, "K"))


def _compression(option: str, text: str) -> str:
    if text not in COMPRESSIONS:
        raise ConfigError(f"option {option}: {text!r} is none of {', '.join(COMPRESSIONS)}")
    return text


def _algorithm(option: str, text: str) -> str:
    if text not in ENCRYPTIONS:
        raise ConfigError(f"option {option}: {text!r} is none of {', '.join(ENCRYPTIONS)}")
    return text


def _key_file(option: str, text: str) -> str:
    """The private key in file *text*, as it is: its passphrase, if any, stays on it."""
    try:
        with open(text, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"option {option}: the file {text} cannot be read: {reason}") from error


def _shards(option: str, text: str) -> int:
    count = _count(option, text)
    if count > 256:
        raise ConfigError(f"option {option}: at most 256 shards are possible")
    return count


# Option → argument of `new_setting`, how its text is read (None: a flag), help.
VALUES: Final[dict[str, tuple[str, Callable[[str, str], Any] | None, str]]] = {
    "storage": ("storage", _text, "object storage: file, s3, minio [file]"),
    "bucket": ("bucket", _text, "directory or URL of the bucket [/var/jfs]"),
    "access-key": ("access_key", _text, "access key (environment: ACCESS_KEY)"),
    "secret-key": ("secret_key", _text, "secret key (environment, which is better: SECRET_KEY)"),
    "session-token": ("session_token", _text, "session token (environment: SESSION_TOKEN)"),
    "storage-class": ("storage_class", _text, "storage class of new objects"),
    "block-size": ("block_size", _block_size, "size of a block, 64K to 16M; a number is KiB [4M]"),
    "compress": ("compression", _compression, "compression of blocks: none, lz4, zstd [none]"),
    "hash-prefix": ("hash_prefix", None, "spread object names by a hash prefix"),
    "shards": ("shards", _shards, "spread objects over N buckets; the bucket's name holds %d [0]"),
    "encrypt-rsa-key": (
        "encrypt_key",
        _key_file,
        "file of the RSA private key that data is encrypted under (passphrase: JFS_RSA_PASSPHRASE)",
    ),
    "encrypt-algo": ("encrypt_algo", _algorithm, "encryption: aes256gcm-rsa, chacha20-rsa [aes256gcm-rsa]"),
    "capacity": ("capacity", _gibibytes, "limit of the used space; a number is GiB [0: none]"),
    "inodes": ("inodes", _count, "limit of the number of files [0: none]"),
    "trash-days": ("trash_days", _count, "days that removed files are kept [1]"),
    "enable-acl": ("enable_acl", None, "POSIX ACLs, for good"),
}
SWITCHES: Final = {
    "force": "overwrite what must not differ of an existing volume",
    "no-update": "leave an existing volume as it is",
}
# Options of the real client, whether they take a value, and what they would turn on.
REFUSED: Final = {
    "tag": (True, "object tags"),
    "ranger-rest-url": (True, "Apache Ranger permissions"),
    "ranger-service": (True, "Apache Ranger permissions"),
    "kerberos-config-file": (True, "Kerberos"),
}
_FLAG_TEXTS: Final = {"true": True, "1": True, "false": False, "0": False}


def takes_value(name: str) -> bool:
    """Whether option *name* has a value; ConfigError when there is no such option."""
    if name in VALUES:
        return VALUES[name][1] is not None
    if name in REFUSED:
        return REFUSED[name][0]
    if name in SWITCHES:
        return False
    raise ConfigError(f"format has no option {name!r}; `jfs format --help` lists them")


def collect(options: Iterable[tuple[str, str | None]]) -> FormatOptions:
    """What *options* (name without dashes, value or None) ask for; later ones win. ConfigError names the option."""
    members: dict[str, Any] = {}
    switches = dict.fromkeys(SWITCHES, False)
    for name, value in options:
        valued = takes_value(name)
        if name in REFUSED:
            raise ConfigError(f"option {name}: {REFUSED[name][1]} cannot be turned on by this client")
        if valued:
            if value is None:
                raise ConfigError(f"option {name} needs a value")
            member, parse, _ = VALUES[name]
            assert parse is not None
            members[member] = parse(name, value)
            continue
        on = True if value is None else _FLAG_TEXTS.get(value.lower())
        if on is None:
            raise ConfigError(f"option {name} takes no value")
        if name in SWITCHES:
            switches[name] = on
        else:
            members[VALUES[name][0]] = on
    return FormatOptions(members, switches["force"], switches["no-update"])


def split_list(text: str) -> list[tuple[str, str | None]]:
    """The options of `k=v,flag,…`."""
    pairs: list[tuple[str, str | None]] = []
    for word in text.split(","):
        name, separator, value = word.strip().lstrip("-").partition("=")
        if name:
            pairs.append((name.strip(), value.strip() if separator else None))
    return pairs


def split_arguments(
    arguments: list[str], valued: Callable[[str], bool] = takes_value
) -> tuple[list[str], list[tuple[str, str | None]]]:
    """(words, options) of a command line; options may stand anywhere, with one dash or two, and `=` or a blank before a value, which
    those have that *valued* says."""
    words: list[str] = []
    pairs: list[tuple[str, str | None]] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            return words + waiting, pairs
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, separator, given = word.lstrip("-").partition("=")
        value = given if separator else None
        if valued(name) and value is None:
            if not waiting:
                raise ConfigError(f"option {name} needs a value")
            value = waiting.pop(0)
        pairs.append((name, value))
    return words, pairs
