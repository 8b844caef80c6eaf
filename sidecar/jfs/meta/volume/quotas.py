"""Quotas set, shown, removed and checked by an administrator, without a mount (format §3.8, §10).

Mounted clients learn of a change with their next heartbeat; what they change until then is not counted, as with the real client, and
found by `check`. Usage of users and groups is kept for all of them from the first such quota on, counted here once from all inodes.
"""

from typing import Final, NamedTuple

from jfs.errors import ConfigError, VolumeError
from jfs.format.constants import DIRECTORY as DIRECTORY_KIND
from jfs.format.constants import ROOT, TRASH, align4k
from jfs.format.setting import Setting
from jfs.meta.model.keys import NodeKey, SettingKey
from jfs.meta.model.quota import DIRECTORY, GROUP, UNLIMITED, USER, Quota, QuotaChange, QuotaKey
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume.paths import find
from jfs.meta.volume.summary import summary

_BATCH: Final = 500
_NONE: Final = QuotaChange(0, 0)


class Limits(NamedTuple):
    """Limits to set; None leaves what is there."""

    space: int | None = None
    inodes: int | None = None


class Difference(NamedTuple):
    """A quota whose usage is not what is there. *kept* is None where there is no record."""

    key: QuotaKey
    kept: Quota | None
    actual: QuotaChange


async def find_directory(store: Store, path: str) -> int:
    """The directory at *path* of the volume. ConfigError when there is none, or it is in the trash."""
    found = await find(store, path.encode())
    if found is None:
        raise ConfigError(f"there is no directory {path} in the volume")
    if found.kind != DIRECTORY_KIND:
        raise ConfigError(f"{path} is no directory of the volume")
    if found.ino >= TRASH:
        raise ConfigError(f"{path} is in the trash, which has no quotas")
    return found.ino


async def path_of(store: Store, ino: int) -> str:
    """The path of a directory in the volume; `/?/…` where its ancestors are not to be found."""
    names: list[bytes] = []
    at = ino
    while at != ROOT:
        (attr,) = await store.get(NodeKey(at))
        if attr is None or len(names) > 10_000:
            return "/?/" + "/".join(name.decode(errors="replace") for name in reversed(names))
        async for page in store.list_directory(attr.parent, plus=False):
            found = [name for name, entry in zip(page.names, page.entries, strict=True) if entry.ino == at]
            if found:
                names.append(found[0])
                break
        else:
            return "/?/" + "/".join(name.decode(errors="replace") for name in reversed(names))
        at = attr.parent
    return "/" + "/".join(name.decode(errors="replace") for name in reversed(names))


async def set_quota(store: Store, setting: Setting, key: QuotaKey, limits: Limits, *, strict: bool) -> Quota:
    """Give a directory, user or group limits; the record as it is then. Usage is counted when there was none. *strict*: from every
    inode, not from the usage records of directories."""
    if key.what == DIRECTORY:
        if not setting.dir_stats:
            strict = True
    elif not setting.user_group_quota:
        await enable_owners(store)

    (present,) = await store.get(key)
    counted = _NONE
    if present is None and key.what == DIRECTORY:
        counted = await _directory_usage(store, key.id, strict=strict)

    async def operation(tx: Tx) -> Quota:
        (quota,) = await tx.get(key)
        if quota is None:
            quota = Quota(used_space=counted.space, used_inodes=counted.inodes)
        if limits.space is not None:
            quota = quota._replace(max_space=limits.space)
        if limits.inodes is not None:
            quota = quota._replace(max_inodes=limits.inodes)
        tx.put(key, quota)
        journal.set_quota(tx, key, *(UNLIMITED if limit is None else limit for limit in limits))
        return quota

    return await store.run(operation)


async def _directory_usage(store: Store, ino: int, *, strict: bool) -> QuotaChange:
    stat = await summary(store, ino, strict=strict)
    return QuotaChange(stat.space, stat.inodes)


async def enable_owners(store: Store) -> None:
    """Count the usage of all users and groups, and have it kept from now on."""
    actual, _ = await owners_usage(store)
    await _put(store, {key: Quota().added(*change) for key, change in actual.items()}, keep_limits=True)

    async def operation(tx: Tx) -> None:
        (raw,) = await tx.get(SettingKey())
        if raw is None:
            raise VolumeError("the volume was destroyed meanwhile")
        tx.put(SettingKey(), Setting.parse(raw).replaced(UserGroupQuota=True).encode())
        journal.note(tx, "INIT_ENABLE_USERGROUPQUOTA()")

    await store.run(operation)


async def owners_usage(store: Store) -> tuple[dict[QuotaKey, QuotaChange], int]:
    """What every user and group owns: all inodes but the root, the trash's root and its hour directories, which are the second result."""
    usage: dict[QuotaKey, QuotaChange] = {}
    hours = 0
    async for ino, attr in store.nodes():
        if ino in (ROOT, TRASH):
            continue
        if attr.parent == TRASH:
            hours += 1
            continue
        space = common.usage(attr).space
        for key in (QuotaKey(USER, attr.uid), QuotaKey(GROUP, attr.gid)):
            usage[key] = usage.get(key, _NONE).plus(space, 1)
    return usage, hours


async def _put(store: Store, quotas: dict[QuotaKey, Quota], *, keep_limits: bool) -> None:
    items = list(quotas.items())
    for start in range(0, len(items), _BATCH):
        batch = items[start : start + _BATCH]

        async def operation(tx: Tx, batch: list[tuple[QuotaKey, Quota]] = batch) -> None:
            present = await tx.get(*(key for key, _ in batch))
            for (key, quota), old in zip(batch, present, strict=True):
                if keep_limits and old is not None:
                    quota = old._replace(used_space=quota.used_space, used_inodes=quota.used_inodes)
                tx.put(key, quota)
                journal.set_quota(tx, key, *quota[:2])

        await store.run(operation)


async def get_quota(store: Store, key: QuotaKey) -> Quota | None:
    """The record of a directory, user or group that has a quota."""
    quota: Quota | None
    (quota,) = await store.get(key)
    return quota if quota is not None and (key.what == DIRECTORY or quota.is_limited) else None


async def delete_quota(store: Store, key: QuotaKey) -> None:
    """Remove the limits; a user's or group's usage is still kept. Nothing to remove is no error."""

    async def operation(tx: Tx) -> None:
        (quota,) = await tx.get(key)
        if quota is None:
            return
        if key.what == DIRECTORY:
            tx.delete(key)
        else:
            tx.put(key, Quota(used_space=quota.used_space, used_inodes=quota.used_inodes))
        journal.deleted_quota(tx, key)

    await store.run(operation)


async def list_quotas(store: Store) -> dict[QuotaKey, Quota]:
    """All quotas: of directories, and of users and groups that have limits."""
    return {
        key: quota
        async for key, quota in store.scan(QuotaKey)
        if isinstance(quota, Quota) and (key.what == DIRECTORY or quota.is_limited)
    }


async def check_directory(store: Store, setting: Setting, ino: int, *, strict: bool, repair: bool) -> Difference | None:
    """Compare a directory's kept usage with what is below it, and with *repair* put it right. VolumeError when it has no quota."""
    key = QuotaKey(DIRECTORY, ino)
    (kept,) = await store.get(key)
    if kept is None:
        raise VolumeError(f"directory {await path_of(store, ino)} has no quota")
    actual = await _directory_usage(store, ino, strict=strict or not setting.dir_stats)
    if (kept.used_space, kept.used_inodes) == actual:
        return None
    if repair:
        await _put(store, {key: Quota().added(*actual)}, keep_limits=True)
    return Difference(key, kept, actual)


async def check_owners(store: Store, *, repair: bool) -> list[Difference]:
    """Compare the kept usage of all users and groups with what they own, and with *repair* put it right. Root may be charged for hour
    directories of the trash: mounts of either client leave them out, the real client's check puts them in."""
    actual, hours = await owners_usage(store)
    kept = {key: quota async for key, quota in store.scan(QuotaKey) if key.what != DIRECTORY}
    found = []
    for key in sorted(actual.keys() | kept.keys()):
        quota = kept.get(key)
        quota = quota if isinstance(quota, Quota) else None
        change = actual.get(key, _NONE)
        extra = quota.used_inodes - change.inodes if quota is not None and key.id == 0 else 0
        if 0 < extra <= hours and change.plus(extra * align4k(0), extra) == (quota or Quota())[2:]:
            continue
        if quota is None or (quota.used_space, quota.used_inodes) != change:
            found.append(Difference(key, quota, change))
    if repair:
        await _put(store, {one.key: Quota().added(*one.actual) for one in found}, keep_limits=True)
    return found
