"""Makes a storage from what the setting record or a command line says (format §2.5).

Nothing is contacted here: the first request tells whether the storage is there. The S3 modules are imported only when an
S3 storage is asked for, so that a volume on a directory does not pay for them.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from jfs.errors import ConfigError
from jfs.format.setting import Setting
from jfs.format.tiers import Tier
from jfs.object.base import ObjectStorage
from jfs.object.prefixed import PrefixedStorage
from jfs.object.sharded import ShardedStorage

SUPPORTED: Final = ("file", "s3", "minio", "mem")
# Storages of the real client that we know by name, to say so rather than "unknown".
_OTHERS: Final = (
    "b2 bos bunny ceph cifs cos dragonfly eos etcd gluster gs hdfs ibmcos jss ks3 mysql nfs obs oos oss postgres qingstor"
    " qiniu redis scs scw sftp space sqlite3 swift tikv tos ufile wasabi wasb webdav"
)


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """What a mount may tune. Times in seconds."""

    connections: int = 256
    connect_timeout: float = 10.0
    idle_timeout: float = 60.0  # the longest silence within an answer
    storage_class: str = ""  # of new objects of tier 0, in place of the setting's
    tiers: Mapping[int, Tier] = field(default_factory=dict)  # of new objects by the tier of their file
    first_pause: float = 0.4  # before the second try; doubles for each further one
    tries: int = 3  # of one request, when the failure is of the kind the protocol calls transient


def open_storage(
    kind: str,
    bucket: str,
    *,
    access_key: str = "",
    secret_key: str = "",
    session_token: str = "",
    options: StorageOptions | None = None,
) -> ObjectStorage:
    """The storage of *kind* at *bucket*; ConfigError when either cannot be meant."""
    if kind == "file":
        from jfs.object.file import FileStorage

        return FileStorage(absolute_directory(bucket))
    if kind == "mem":
        from jfs.object.memory import MemoryStorage

        return MemoryStorage(bucket)
    if kind in ("s3", "minio"):
        from jfs.object.s3 import S3Storage
        from jfs.object.s3_address import parse_bucket_url

        address = parse_bucket_url(kind, bucket, dict(os.environ))
        return S3Storage(
            address,
            access_key=access_key,
            secret_key=secret_key,
            session_token=session_token,
            options=options or StorageOptions(),
        )
    known = f"use one of {', '.join(SUPPORTED)}"
    if kind in _OTHERS.split():
        raise ConfigError(f"the object storage {kind} is not supported by this client: {known}")
    raise ConfigError(f"there is no object storage named {kind!r}: {known}")


def for_volume(storage: ObjectStorage, name: str) -> ObjectStorage:
    """The part of *storage* that belongs to volume *name*: everything below `<name>/`. Closing it closes *storage*."""
    return PrefixedStorage(storage, name + "/")


def open_volume(
    setting: Setting,
    *,
    storage: str = "",
    bucket: str = "",
    access_key: str = "",
    secret_key: str = "",
    session_token: str = "",
    options: StorageOptions | None = None,
    passphrase: str = "",
    names_only: bool = False,
) -> ObjectStorage:
    """The objects of the volume of *setting*; each argument that is not empty replaces the setting's. *passphrase* opens the private
    key of an encrypted volume; with *names_only* it is not needed, and contents must not be read or written. ConfigError;
    VolumeError when the key does not open."""
    kind, where = storage or setting.storage, bucket or setting.bucket
    used = options or StorageOptions()
    used = replace(used, tiers=_tiers(setting, used.storage_class))

    def one(place: str) -> ObjectStorage:
        return open_storage(
            kind,
            place,
            access_key=access_key or setting.access_key,
            secret_key=secret_key or setting.secret_key,
            session_token=session_token or setting.session_token,
            options=used,
        )

    def whole(inner: ObjectStorage) -> ObjectStorage:
        if names_only or not setting.is_encrypted:
            return for_volume(inner, setting.name)
        return for_volume(_encrypted(inner, setting, passphrase), setting.name)

    if not setting.shards:
        return whole(one(where))
    if where.count("%d") != 1:
        raise ConfigError(f"the bucket {where} must hold %d once, which stands for the number of each of the shards")
    shards = [one(where.replace("%d", str(number))) for number in range(setting.shards)]
    return whole(ShardedStorage(shards))


def _tiers(setting: Setting, storage_class: str) -> dict[int, Tier]:
    """What objects of each tier get; *storage_class* takes the place of the setting's for tier 0."""
    tiers = dict(setting.tiers)
    if 0 not in tiers or storage_class:
        first = tiers.get(0, Tier(setting.storage_class))
        tiers[0] = first._replace(storage_class=storage_class or first.storage_class)
    return tiers


def _encrypted(inner: ObjectStorage, setting: Setting, passphrase: str) -> ObjectStorage:
    from jfs.object.encrypted import EncryptedStorage
    from jfs.object.encryption import load

    return EncryptedStorage(inner, load(setting.encrypt_key, setting.encrypt_algo, passphrase, setting.name))


def default_bucket(kind: str) -> str:
    """Where the real client puts a volume when no bucket is given: `/var/jfs/` for root, `~/.juicefs/local/` else (format §2.5)."""
    if kind == "file":
        return "/var/jfs/" if os.geteuid() == 0 else os.path.expanduser("~/.juicefs/local/")
    if kind == "mem":
        return ""
    raise ConfigError(f"the object storage {kind} needs --bucket, the URL of the bucket")


def absolute_directory(path: str) -> str:
    """A directory's absolute path ending in `/`; ConfigError when something else is there."""
    if not path:
        raise ConfigError("the object storage file needs a directory as --bucket")
    absolute = os.path.abspath(path).rstrip("/") + "/"
    try:
        mode = os.stat(absolute.rstrip("/") or "/").st_mode
    except OSError:
        return absolute
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"the bucket {absolute} is not a directory")
    return absolute
