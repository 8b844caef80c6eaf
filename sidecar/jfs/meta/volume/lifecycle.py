"""What happens to a volume as a whole: format, status, destroy (format §2.3, §10). No mount is needed for any of them."""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from jfs.errors import ConfigError, VolumeError
from jfs.format.changes import changed_fixed
from jfs.format.constants import DIRECTORY, ROOT, TRASH
from jfs.format.setting import Setting
from jfs.format.tiers import Tier, with_tier
from jfs.meta.model.keys import CounterKey, DirStat, DirStatKey, NodeKey, SettingKey
from jfs.meta.operations import rules as common
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume.options import volume_room
from jfs.meta.volume.session import load_setting


class FormatResult(NamedTuple):
    """*created* is False when the volume was there already; *setting* is the record as it is in the database now."""

    created: bool
    setting: Setting


async def existing_setting(store: Store) -> Setting | None:
    """The setting record, None when the database holds no volume."""
    (raw,) = await store.get(SettingKey())
    return None if raw is None else Setting.parse(raw)


async def format_volume(store: Store, setting: Setting, *, force: bool, no_update: bool, now: int) -> FormatResult:
    """Create the volume of *setting* at time *now* (ns), or with the same name update its record (format §2.3).

    Its secrets are written as given: seal them before. The UUID of an existing volume stays. ConfigError when an existing volume
    differs in what must not change and not *force*; VolumeError when the database holds something that is no volume.
    """
    sealed = "KeyEncrypted" in setting.members

    async def operation(tx: Tx) -> FormatResult:
        raw, root, trash = await tx.get(SettingKey(), NodeKey(ROOT), NodeKey(TRASH))
        if raw is not None:
            old = Setting.parse(raw)
            if no_update:
                return FormatResult(False, old)
            new = updated(old, setting, force=force)
            tx.put(SettingKey(), new.encode())
            if new.trash_days and trash is None:
                tx.put(NodeKey(TRASH), _directory(0o555, now))
            return FormatResult(False, new)
        if root is not None:
            raise VolumeError("the database holds inodes but no setting record: it was damaged, nothing was changed")
        tx.put(SettingKey(), setting.encode())
        tx.put(NodeKey(ROOT), _directory(0o777, now))
        if setting.dir_stats:
            tx.put(DirStatKey(ROOT), DirStat(0, 0, 0))
        if setting.trash_days and trash is None:
            tx.put(NodeKey(TRASH), _directory(0o555, now))
        for name, value in store.initial_counters.items():
            tx.put(CounterKey(name), value)
        return FormatResult(True, setting)

    if sealed and not setting.uuid:
        raise ConfigError("secrets can only be sealed for a volume that has a UUID")
    return await store.run(operation)


def _directory(mode: int, now: int) -> Any:
    return common.new_attr(DIRECTORY, mode, 0, 0, now, ROOT)


def updated(old: Setting, new: Setting, *, force: bool) -> Setting:
    """Record *old* with what `format` may change taken from *new*: its identity and unknown members stay.

    ConfigError naming the members that differ though they must not, unless *force*.
    """
    if old.is_encrypted and not new.is_encrypted:
        if (new.secret_key or new.session_token) and bool(new.members.get("KeyEncrypted")) != bool(
            old.members.get("KeyEncrypted")
        ):
            raise ConfigError(f"the secrets for the existing volume {old.name} must be sealed as its encryption key is")
        new = new.replaced(EncryptKey=old.members["EncryptKey"], KeyEncrypted=old.members.get("KeyEncrypted"))
    wrong = changed_fixed(old, new)
    if wrong and not force:
        raise ConfigError(
            f"volume {old.name} exists already and differs in {', '.join(wrong)}: format it with the same values, use another "
            "database, or --force"
        )
    if new.members.get("KeyEncrypted") and new.uuid != old.uuid:
        raise ConfigError(f"the secrets are sealed for another UUID than that of the existing volume {old.name}")
    changes = {name: value for name, value in new.members.items() if name not in _KEPT}
    for name in ("AccessKey", "SecretKey", "SessionToken", "KeyEncrypted", "Capacity", "Inodes", "StorageClass"):
        changes.setdefault(name, new.members.get(name))
    if new.is_encrypted:
        changes["EncryptAlgo"] = new.encrypt_algo
    result = old.replaced(**changes)
    if (wanted := changes.get("StorageClass") or "") != old.storage_class:  # which tier 0 mirrors
        tier = Tier(wanted, old.tiers.get(0, Tier()).tag)
        result = result.replaced(Tiers=with_tier(old.members.get("Tiers"), 0, tier))
    return result


# Members that an update does not take from the new record: identity, and what only `config` changes.
_KEPT = frozenset(
    {"UUID", "Tiers", "EncryptAlgo", "MetaVersion", "MinClientVersion", "MaxClientVersion", "DirStats", "EnableACL"}
)


async def status(store: Store) -> dict[str, Any]:
    """What `juicefs status` prints: Setting (without secrets), Sessions, Stat. VolumeError when there is no volume."""
    setting = await load_setting(store)
    sessions = []
    async for sid, session in store.sessions():
        expire = datetime.fromtimestamp(session.expire, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            info = json.loads(session.info) if session.info else {}
        except ValueError:
            info = {}  # a session without readable info is a session still
        sessions.append({"Sid": sid, "Expire": expire, **(info if isinstance(info, dict) else {})})
    space, inodes = await store.get(common.USED_SPACE, common.TOTAL_INODES)
    room = volume_room(setting.capacity, setting.inodes, space or 0, inodes or 0)
    return {
        "Setting": setting.redacted(),
        "Sessions": sorted(sessions, key=lambda session: int(session["Sid"])),
        "Stat": {
            "UsedSpace": room.used,
            "AvailableSpace": room.total - room.used,
            "UsedInodes": room.inodes,
            "AvailableInodes": room.free_inodes,
        },
    }


async def destroy(
    store: Store, uuid: str, *, force: bool, now: int, delete_objects: Callable[[Setting], Awaitable[None]]
) -> None:
    """Remove volume *uuid* for ever: its objects by *delete_objects*, then every record. A failure can be repeated.

    VolumeError when the database holds another volume, or sessions that have not expired at *now* (ns) and not *force*.
    """
    setting = await load_setting(store)
    if setting.uuid != uuid:
        raise VolumeError(f"the database holds volume {setting.name} ({setting.uuid}), not {uuid}: nothing was removed")
    if not force:
        alive = [sid async for sid, session in store.sessions() if session.expire >= now // common.SECOND]
        if alive:
            raise VolumeError(
                f"volume {setting.name} is mounted by session {', '.join(map(str, alive))}: unmount it first, or use --force"
            )
    await delete_objects(setting)
    await store.reset()
