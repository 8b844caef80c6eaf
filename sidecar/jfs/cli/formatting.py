"""Creating a volume, or changing the setting of an existing one (format §2.3): the steps behind `jfs format`.

Order: everything given is checked; the database is asked what it holds; the storage is tried and must not hold another
volume; `juicefs_uuid` is put; the metadata are written in one transaction. Invariant: nothing is half made – when the metadata
cannot be written, `juicefs_uuid` is removed again, and a repetition with the same UUID completes one that was killed between.
Concurrency: of two that format one database at once, the transaction lets one win; the other one notices.
"""

import contextlib
import os
import time
import uuid as uuids
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from jfs.cli.format_options import FormatOptions
from jfs.errors import (
    ConfigError,
    ObjectError,
    ObjectForbidden,
    ObjectNotFound,
    ObjectUnavailable,
    VolumeError,
)
from jfs.format.changes import acl_members, changed_fixed
from jfs.format.setting import SECRETS, Setting, new_setting
from jfs.format.usable import check_identity
from jfs.meta.store.base import Store
from jfs.meta.volume import existing_setting, format_volume
from jfs.object.base import ObjectStorage
from jfs.object.connect import absolute_directory, default_bucket, open_volume
from jfs.object.selftest import TESTING, probe

UUID_OBJECT: Final = "juicefs_uuid"
# Arguments of `new_setting` that have another name in the record.
_MEMBERS: Final = {
    "storage": "Storage",
    "bucket": "Bucket",
    "access_key": "AccessKey",
    "secret_key": "SecretKey",
    "session_token": "SessionToken",
    "storage_class": "StorageClass",
    "block_size": "BlockSize",
    "compression": "Compression",
    "shards": "Shards",
    "hash_prefix": "HashPrefix",
    "capacity": "Capacity",
    "inodes": "Inodes",
    "encrypt_key": "EncryptKey",
    "encrypt_algo": "EncryptAlgo",
    "trash_days": "TrashDays",
    "enable_acl": "EnableACL",
}


class Formatted(NamedTuple):
    """The record as it is now, where its objects are, and what happened to it."""

    setting: Setting
    place: str
    created: bool
    changed: bool


def plan(name: str, options: FormatOptions, uuid: str = "", *, passphrase: str = "") -> Setting:
    """The setting of a new volume; ConfigError when something given cannot be meant. Contacts nothing, so it comes first."""
    setting = new_setting(name, _checked_uuid(uuid), **_completed(options.members))
    open_volume(setting, passphrase=passphrase)
    return setting


async def format_store(
    store: Store, fresh: Setting, options: FormatOptions, *, keep_existing: bool = False, passphrase: str = ""
) -> Formatted:
    """Create the volume of `plan` in *store*, or change the given options of the volume that is there; with *keep_existing* an
    existing volume of this name is left as it is. ConfigError, VolumeError, StoreError, ObjectError: nothing has changed."""
    name = fresh.name
    old = await existing_setting(store)
    if old is None:
        return await _create(store, fresh, keep_existing=keep_existing, passphrase=passphrase)
    if keep_existing and old.name != name:
        raise VolumeError(f"the database holds volume {old.name} already, not {name}: use another database")
    if options.no_update or keep_existing:
        return Formatted(old, "", False, False)
    check_identity(old, old.uuid)
    changed = changed_record(old, name, options.members)
    wrong = changed_fixed(old, changed)
    if wrong and not options.force:
        raise ConfigError(
            f"the database holds volume {old.name} already, which differs in {', '.join(wrong)}: give the same values, use"
            " another database, or --force"
        )
    if _checks_storage():
        storage = open_volume(changed, passphrase=passphrase)
        try:
            await _try(storage)
        finally:
            await storage.close()
    sealed = changed.with_sealed_secrets(os.urandom)
    result = await format_volume(store, sealed, force=options.force, no_update=False, now=time.time_ns())
    return Formatted(result.setting, open_volume(result.setting, names_only=True).describe(), False, True)


async def _create(store: Store, setting: Setting, *, keep_existing: bool, passphrase: str) -> Formatted:
    storage = open_volume(setting, passphrase=passphrase)
    try:
        if _checks_storage():
            await _try(storage)
            await _refuse_foreign(storage, setting)
        await storage.put(UUID_OBJECT, setting.uuid.encode())
        try:
            result = await format_volume(
                store, setting.with_sealed_secrets(os.urandom), force=False, no_update=True, now=time.time_ns()
            )
        except BaseException:
            with contextlib.suppress(ObjectError):  # what went wrong first says more
                await storage.delete(UUID_OBJECT)
            raise
        if not result.created:
            await _yield_to(storage, setting, result.setting, keep_existing=keep_existing)
        return Formatted(result.setting, storage.describe(), result.created, result.created)
    finally:
        await storage.close()


async def _yield_to(storage: ObjectStorage, mine: Setting, winner: Setting, *, keep_existing: bool) -> None:
    """Another client has formatted the database meanwhile: take our mark away or correct it."""
    if winner.name == mine.name:
        await storage.put(UUID_OBJECT, winner.uuid.encode())
        if keep_existing or winner.uuid == mine.uuid:
            return
    else:
        await storage.delete(UUID_OBJECT)
    raise VolumeError(f"another client has just formatted this database as volume {winner.name} ({winner.uuid})")


async def _try(storage: ObjectStorage) -> None:
    """Probe the storage; a missing bucket is created, as the real client does."""
    try:
        await probe(storage)
    except ObjectForbidden:
        raise
    except ObjectUnavailable as first:
        try:
            await storage.create_bucket()
        except ObjectForbidden as error:
            raise ObjectForbidden(f"{first}; it cannot be created either: {error}") from error
        except ObjectError:
            raise first from None
        await probe(storage)


async def _refuse_foreign(storage: ObjectStorage, setting: Setting) -> None:
    """VolumeError when objects of another volume lie below the prefix (format §2.3)."""
    async for info in storage.list():
        if not info.size or info.key.startswith(TESTING):
            continue
        if info.key == UUID_OBJECT:
            with contextlib.suppress(ObjectNotFound):
                if bytes(await storage.get(UUID_OBJECT)).decode("ascii", "replace").strip() != setting.uuid:
                    raise VolumeError(
                        f"{storage.describe()} belongs to another volume: use another name or bucket, or remove its objects"
                    )
            continue  # left by a format with this UUID that was interrupted
        raise VolumeError(
            f"{storage.describe()} is not empty ({info.key}): use another name or bucket, or remove its objects"
        )


def _completed(members: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a new volume: the default bucket, a directory made absolute (format §2.5)."""
    completed = dict(members)
    kind = completed.get("storage", "file")
    bucket = completed.get("bucket") or default_bucket(kind)
    completed["bucket"] = absolute_directory(bucket) if kind == "file" else bucket
    if completed.get("shards", 0) > 1 and bucket.count("%d") != 1:
        raise ConfigError("option shards: the bucket must hold %d once, which stands for the number of each shard")
    return completed


def changed_record(old: Setting, name: str, given: Mapping[str, Any]) -> Setting:
    """Record *old* with the members that were *given*, its secrets plain when one of them is."""
    members = {_MEMBERS[argument]: value for argument, value in given.items()}
    if "Bucket" in members and members.get("Storage", old.storage) == "file":
        members["Bucket"] = absolute_directory(members["Bucket"])
    if "BlockSize" in members:
        members["BlockSize"] >>= 10
    if any(member in members for member in SECRETS) and old.members.get("KeyEncrypted"):
        plain = {"SecretKey": old.secret_key, "SessionToken": old.session_token, "EncryptKey": old.encrypt_key}
        members = {**plain, "KeyEncrypted": False, **members}
    if "EnableACL" in members:
        members |= acl_members(old, members["EnableACL"])
    return old.replaced(Name=name, **members)


def _checked_uuid(uuid: str) -> str:
    if not uuid:
        return str(uuids.uuid4())
    try:
        return str(uuids.UUID(uuid))
    except ValueError:
        raise ConfigError(f"uuid {uuid!r} is not a UUID") from None


def _checks_storage() -> bool:
    return not os.environ.get("JFS_NO_CHECK_OBJECT_STORAGE")
