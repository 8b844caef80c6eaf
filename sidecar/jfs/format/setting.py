"""The setting record of a volume (format §2): what a volume is called, where its objects are, how they are cut.

Place: read by every command and mount before anything else, reloaded by each heartbeat, written by `format`.
Invariant: a record that was read is written back with every member it had, known or not, in its order; secrets stay in
their stored form and are decrypted only by the properties that return them, so no printed form can hold them.
Concurrency: values are immutable.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from jfs.errors import ConfigError, CorruptRecord, VolumeError
from jfs.format.constants import META_VERSION
from jfs.format.secrets import NONCE_BYTES, seal, unseal
from jfs.format.tiers import Tier, read_tiers

# Members in the order the real client writes them, and whether it leaves them out when empty (format §2.2).
MEMBERS: Final[Mapping[str, bool]] = MappingProxyType(
    {
        "Name": False,
        "UUID": False,
        "Storage": False,
        "StorageClass": True,
        "Tiers": False,
        "Bucket": False,
        "AccessKey": True,
        "SecretKey": True,
        "SessionToken": True,
        "BlockSize": False,
        "Compression": True,
        "Shards": True,
        "HashPrefix": True,
        "Capacity": True,
        "Inodes": True,
        "EncryptKey": True,
        "EncryptAlgo": True,
        "KeyEncrypted": True,
        "UploadLimit": True,
        "DownloadLimit": True,
        "TrashDays": False,
        "MetaVersion": True,
        "MinClientVersion": True,
        "MaxClientVersion": True,
        "DirStats": True,
        "UserGroupQuota": True,
        "EnableACL": False,
        "RangerRestUrl": True,
        "RangerService": True,
        "ChangeLog": True,
        "ChangeLogMaxAge": True,
        "ChangeLogMaxLines": True,
        "KerbConf": True,
    }
)
_ORDER: Final = {name: place for place, name in enumerate(MEMBERS)}
SECRETS: Final = ("SecretKey", "SessionToken", "EncryptKey")
MIN_VERSION_ACL: Final = "1.2.0-A"  # what a volume with ACLs demands of its clients (format §2.6)
_NAME = re.compile(r"[a-z0-9][a-z0-9\-]{1,61}[a-z0-9]")
_BLOCK_MIN, _BLOCK_MAX = 64 << 10, 16 << 20
COMPRESSIONS: Final = ("none", "lz4", "zstd")
ENCRYPTIONS: Final = ("aes256gcm-rsa", "chacha20-rsa")
# What Go's encoder escapes beyond JSON's own rules.
_HTML = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting record; *members* is the JSON object as stored (secrets possibly encrypted)."""

    members: Mapping[str, Any]

    @classmethod
    def parse(cls, raw: bytes) -> "Setting":
        """Decode the stored JSON; CorruptRecord when it is none or lacks the volume's identity."""
        try:
            members = json.loads(raw)
        except ValueError as error:
            raise CorruptRecord("the setting record is not JSON: this database holds no usable volume") from error
        if not isinstance(members, dict) or not isinstance(members.get("Name"), str) or not members.get("UUID"):
            raise CorruptRecord("the setting record has no Name and UUID: this database holds no usable volume")
        return cls(MappingProxyType(members))

    def encode(self) -> bytes:
        """The stored form as the real client writes it: one member per line, no indent, HTML characters escaped."""
        text = json.dumps(dict(self.members), ensure_ascii=False, indent=0, separators=(",", ": "))
        return text.translate(_HTML).encode()

    def replaced(self, **changes: Any) -> "Setting":
        """The same record with the members *changes*; new ones are put where the real client has them, emptied ones left out."""
        members = dict(self.members)
        for name, value in changes.items():
            if not value and MEMBERS.get(name, False):
                members.pop(name, None)
            elif name in members:
                members[name] = value
            else:
                members = _inserted(members, name, value)
        return Setting(MappingProxyType(members))

    def redacted(self) -> dict[str, Any]:
        """The members for people and logs: each secret that is set is the word `removed` (format §2.4)."""
        return {name: "removed" if name in SECRETS and value else value for name, value in self.members.items()}

    def __repr__(self) -> str:
        return f"Setting({self.redacted()!r})"

    # -- typed members --------------------------------------------------------------------------------------------

    def _text(self, name: str) -> str:
        value = self.members.get(name)
        return value if isinstance(value, str) else ""

    def _number(self, name: str) -> int:
        value = self.members.get(name)
        return int(value) if isinstance(value, int) else 0

    def _secret(self, name: str) -> str:
        stored = self._text(name)
        if not stored or not self.members.get("KeyEncrypted"):
            return stored
        if self._text("EncryptAlgo") == "sm4gcm":
            raise VolumeError(
                f"volume {self.name}: its secrets are encrypted with SM4, which this client cannot decrypt"
            )
        return unseal(self.uuid, stored)

    @property
    def name(self) -> str:
        return self._text("Name")

    @property
    def uuid(self) -> str:
        return self._text("UUID")

    @property
    def storage(self) -> str:
        """Kind of the object storage: file, s3, minio, …"""
        return self._text("Storage")

    @property
    def storage_class(self) -> str:
        """That of new objects of files without a tier."""
        tiers = self.tiers
        return tiers[0].storage_class if 0 in tiers else self._text("StorageClass")

    @property
    def tiers(self) -> dict[int, Tier]:
        """The storage tiers by number; 0 is that of files without one."""
        return read_tiers(self.members.get("Tiers"))

    @property
    def bucket(self) -> str:
        return self._text("Bucket")

    @property
    def access_key(self) -> str:
        return self._text("AccessKey")

    @property
    def secret_key(self) -> str:
        """The decrypted secret key."""
        return self._secret("SecretKey")

    @property
    def session_token(self) -> str:
        """The decrypted session token."""
        return self._secret("SessionToken")

    @property
    def encrypt_key(self) -> str:
        """The decrypted PEM text of the data encryption key, which may itself be protected by a passphrase."""
        return self._secret("EncryptKey")

    @property
    def is_encrypted(self) -> bool:
        """Whether objects are encrypted."""
        return bool(self._text("EncryptKey"))

    @property
    def encrypt_algo(self) -> str:
        """How objects are encrypted when they are: aes256gcm-rsa, chacha20-rsa, sm4gcm."""
        return self._text("EncryptAlgo") or ENCRYPTIONS[0]

    @property
    def block_size(self) -> int:
        """Bytes of a block (the record has KiB)."""
        return (self._number("BlockSize") or 4096) << 10

    @property
    def compression(self) -> str:
        """none, lz4 or zstd."""
        return self._text("Compression") or "none"

    @property
    def shards(self) -> int:
        """Number of buckets; 0 when objects are not spread (0.14 called it Partitions)."""
        count = self._number("Shards") or self._number("Partitions")
        return count if count > 1 else 0

    @property
    def hash_prefix(self) -> bool:
        return bool(self.members.get("HashPrefix"))

    @property
    def capacity(self) -> int:
        """Limit of the used space in bytes, 0 for none."""
        return self._number("Capacity")

    @property
    def inodes(self) -> int:
        """Limit of the number of inodes, 0 for none."""
        return self._number("Inodes")

    @property
    def trash_days(self) -> int:
        return self._number("TrashDays")

    @property
    def meta_version(self) -> int:
        return self._number("MetaVersion")

    @property
    def min_client_version(self) -> str:
        return self._text("MinClientVersion")

    @property
    def max_client_version(self) -> str:
        return self._text("MaxClientVersion")

    @property
    def dir_stats(self) -> bool:
        return bool(self.members.get("DirStats"))

    @property
    def user_group_quota(self) -> bool:
        """Whether usage of users and groups is kept."""
        return bool(self.members.get("UserGroupQuota"))

    @property
    def enable_acl(self) -> bool:
        """Whether inodes may have POSIX ACLs; once on, it stays on."""
        return bool(self.members.get("EnableACL"))

    @property
    def change_log(self) -> bool:
        """Whether every change of metadata is logged for followers."""
        return bool(self.members.get("ChangeLog"))

    @property
    def change_log_age(self) -> int:
        """Seconds that entries of the change log are kept, 0 for ever."""
        return self._number("ChangeLogMaxAge")

    @property
    def change_log_lines(self) -> int:
        """How many entries of the change log are kept, 0 for all."""
        return self._number("ChangeLogMaxLines")

    @property
    def upload_limit(self) -> int:
        """Mbit/s, 0 for none."""
        return self._number("UploadLimit")

    @property
    def download_limit(self) -> int:
        """Mbit/s, 0 for none."""
        return self._number("DownloadLimit")

    def with_sealed_secrets(self, random: Callable[[int], bytes]) -> "Setting":
        """The same with its plain secrets encrypted (format §2.4); unchanged when they are already, or when there are none."""
        plain = {name: self._text(name) for name in SECRETS if self._text(name)}
        if not plain or self.members.get("KeyEncrypted"):
            return self
        sealed = {name: seal(self.uuid, value, random(NONCE_BYTES)) for name, value in plain.items()}
        return self.replaced(**sealed, KeyEncrypted=True)


def _inserted(members: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """*members* with a new one before the first member that the real client writes after it."""
    place = _ORDER.get(name)
    if place is None:
        return {**members, name: value}
    result: dict[str, Any] = {}
    for other, kept in members.items():
        if name not in result and _ORDER.get(other, -1) > place:
            result[name] = value
        result[other] = kept
    return result if name in result else {**result, name: value}


def new_setting(
    name: str,
    uuid: str,
    *,
    storage: str = "file",
    bucket: str = "",
    access_key: str = "",
    secret_key: str = "",
    session_token: str = "",
    storage_class: str = "",
    block_size: int = 4 << 20,
    compression: str = "none",
    shards: int = 0,
    hash_prefix: bool = False,
    capacity: int = 0,
    inodes: int = 0,
    encrypt_key: str = "",
    encrypt_algo: str = ENCRYPTIONS[0],
    trash_days: int = 1,
    dir_stats: bool = True,
    enable_acl: bool = False,
) -> Setting:
    """The record of a new volume, secrets plain, with the real client's defaults; ConfigError when something is out of range."""
    check_name(name)
    if compression not in COMPRESSIONS:
        raise ConfigError(f"compression {compression!r} is not known: use one of {', '.join(COMPRESSIONS)}")
    if encrypt_algo not in ENCRYPTIONS:
        raise ConfigError(f"encryption {encrypt_algo!r} is not known: use one of {', '.join(ENCRYPTIONS)}")
    for what, number in (("capacity", capacity), ("inodes", inodes), ("trash days", trash_days), ("shards", shards)):
        if number < 0:
            raise ConfigError(f"{what} must not be negative: got {number}")
    values: dict[str, Any] = {
        "Name": name,
        "UUID": uuid,
        "Storage": storage,
        "StorageClass": storage_class,
        "Tiers": {"0": {"ID": 0, "StorageClass": storage_class, "Tag": ""}},
        "Bucket": bucket,
        "AccessKey": access_key,
        "SecretKey": secret_key,
        "SessionToken": session_token,
        "BlockSize": check_block_size(block_size) >> 10,
        "Compression": compression,
        "Shards": shards,
        "HashPrefix": hash_prefix,
        "Capacity": capacity,
        "Inodes": inodes,
        "EncryptKey": encrypt_key,
        "EncryptAlgo": encrypt_algo,
        "TrashDays": trash_days,
        "MetaVersion": META_VERSION,
        "MinClientVersion": MIN_VERSION_ACL if enable_acl else "1.1.0-A",
        "DirStats": dir_stats,
        "EnableACL": enable_acl,
    }
    return Setting(MappingProxyType({key: value for key, value in values.items() if value or not MEMBERS[key]}))


def check_name(name: str) -> None:
    """ConfigError unless *name* can name a volume (format §2.2)."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"volume name {name!r} is not valid: use 3 to 63 lower-case letters, digits and dashes, "
            "beginning and ending with a letter or digit"
        )


def check_block_size(size: int) -> int:
    """*size* bytes rounded down to a power of two; ConfigError outside 64 KiB … 16 MiB (format §1.2)."""
    if not _BLOCK_MIN <= size <= _BLOCK_MAX:
        raise ConfigError(f"block size of {size} bytes is out of range: it must be between 64 KiB and 16 MiB")
    return 1 << (size.bit_length() - 1)
