"""Judges the usage kept with quotas: of directories against everything below them, of users and groups against what they own
(format §3.8). Pure functions from `Facts` to damages; every usage can be repaired, since it is a sum of sound records."""

from collections.abc import Iterator

from jfs.check.damage import Damage, Fix
from jfs.check.facts import Facts
from jfs.format.constants import align4k
from jfs.meta.model.quota import DIRECTORY, USER, Quota, QuotaChange, QuotaKey
from jfs.meta.store.base import Tx

_NONE = QuotaChange(0, 0)


def judge(facts: Facts) -> Iterator[Damage]:
    """Quotas whose usage is not what is there."""
    below = _below(facts)
    for key, quota in facts.quotas.items():
        if key.what != DIRECTORY:
            continue
        if key.id not in facts.nodes:
            if key.id not in facts.unreadable:
                yield Damage("quota", key.id, f"directory {key.id} does not exist and has a quota", _removed(key))
            continue
        actual = below[key]
        if (quota.used_space, quota.used_inodes) != actual:
            text = (
                f"{{path}}: quota({quota.used_inodes}, {quota.used_space} bytes) != "
                f"summary({actual.inodes}, {actual.space} bytes)"
            )
            yield Damage("quota", key.id, text, _added(key, quota, actual))
    if facts.setting.user_group_quota and not facts.unreadable:
        kept = {key for key in facts.quotas if key.what != DIRECTORY}
        for key in sorted(kept | facts.owned.keys()):
            present, owned = facts.quotas.get(key, Quota()), facts.owned.get(key, _NONE)
            extra = QuotaChange(present.used_space - owned.space, present.used_inodes - owned.inodes)
            # Hour directories of the trash belong to root; mounts of the real client leave them out, its check wants them.
            hours = facts.hours if key.id == 0 else 0
            if extra.space != extra.inodes * align4k(0) or not 0 <= extra.inodes <= hours:
                name = f"{'uid' if key.what == USER else 'gid'}:{key.id}"
                text = (
                    f"{name}: usage({present.used_inodes}, {present.used_space} bytes) != "
                    f"actual usage({owned.inodes}, {owned.space} bytes)"
                )
                yield Damage("quota", None, text, _added(key, present, owned))


def _below(facts: Facts) -> dict[QuotaKey, QuotaChange]:
    """What lies below each directory with a quota: the usage of every directory counts for those above it and for itself."""
    totals = {key: _NONE for key in facts.quotas if key.what == DIRECTORY}
    if totals:
        for directory, usage in facts.usage.items():
            at: int | None = directory
            seen: set[int] = set()
            while at is not None and at not in seen:
                seen.add(at)
                key = QuotaKey(DIRECTORY, at)
                if key in totals:
                    totals[key] = totals[key].plus(usage.space, usage.inodes)
                at = facts.first_parent.get(at)
    return totals


def _added(key: QuotaKey, kept: Quota, actual: QuotaChange) -> Fix:
    async def fix(tx: Tx) -> None:
        tx.add_quota(key, actual.space - kept.used_space, actual.inodes - kept.used_inodes)

    return fix


def _removed(key: QuotaKey) -> Fix:
    async def fix(tx: Tx) -> None:
        tx.delete(key)

    return fix
