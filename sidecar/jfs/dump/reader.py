"""A JSON dump into a blank database, while it is parsed (format §9.2).

Events of the parser become entries for `TreeLoader`; members outside of the trees are small and are taken as they are.
"""

from collections.abc import Callable, Iterator
from typing import IO, Any, Final

import ijson

from jfs.check.examination import repair
from jfs.dump.loader import Batch, TreeLoader
from jfs.dump.writer import NEXT
from jfs.errors import VolumeError
from jfs.format.constants import ROOT, TRASH
from jfs.format.setting import Setting
from jfs.format.usable import check_versions
from jfs.meta.model.keys import CounterKey, DeletedFileKey, SettingKey, SustainedKey
from jfs.meta.model.quota import DIRECTORY, GROUP, USER, Quota, QuotaKey
from jfs.meta.store.base import Store

Event = tuple[str, Any]

_TREES: Final = {"FSTree": ROOT, "Trash": TRASH}
_QUOTAS: Final = {"Quotas": DIRECTORY, "UserQuotas": USER, "GroupQuotas": GROUP}
_COUNTERS: Final = {
    "nextInodes": "nextInode",
    "nextChunk": "nextChunk",
    "nextSession": "nextSession",
    "nextTrash": "nextTrash",
}
_NOT_A_DUMP: Final = "the file is no JSON dump of a volume"


async def load(
    store: Store, file: IO[bytes], stored: Callable[[int], None] = lambda count: None, *, together: int = 1
) -> int:
    """Load the dump in *file*, *together* transactions at once; how many entries it had. VolumeError when the database is not blank
    or the file is damaged: then what was stored so far is removed again."""
    await expect_blank(store)
    try:
        async with Batch(store, stored, together=together) as batch:
            return await _load(store, file, batch)
    except ijson.JSONError as error:
        await store.reset()
        raise VolumeError(f"{_NOT_A_DUMP}, or is cut off ({error}); nothing was loaded") from error
    except VolumeError:
        await store.reset()
        raise


async def expect_blank(store: Store) -> None:
    """VolumeError unless the database holds nothing."""
    if not await store.is_blank():
        raise VolumeError("the database is not empty; load wants an empty one, so that nothing is mixed or lost")


async def _load(store: Store, file: IO[bytes], batch: Batch) -> int:
    events: Iterator[Event] = ijson.basic_parse(file)
    if next(events)[0] != "start_map":
        raise VolumeError(_NOT_A_DUMP)
    members: dict[str, Any] = {}
    loader: TreeLoader | None = None
    for event, name in events:
        if event == "end_map":
            break
        if name in _TREES:
            setting = _setting(members)
            loader = loader or TreeLoader(batch, statistics=setting.dir_stats)
            await _tree(loader, events, _TREES[name])
        else:
            members[name] = _value(events, next(events))
    if loader is None:
        raise VolumeError(f"{_NOT_A_DUMP}: it has no FSTree")
    await loader.finish()
    await _rest(store, batch, members, loader)
    if any(members.get(name) for name in _QUOTAS):
        await count_quotas(store)
    return loader.entries


async def count_quotas(store: Store) -> None:
    """Usage of quotas is not dumped, or not by everybody: count it."""
    await repair(store, wanted=lambda facts, damage: damage.kind == "quota")


def _setting(members: dict[str, Any]) -> Setting:
    if not isinstance(members.get("Setting"), dict):
        raise VolumeError(f"{_NOT_A_DUMP}: no Setting comes before the tree")
    setting = Setting(members["Setting"])
    check_versions(setting)
    return setting


async def _rest(store: Store, batch: Batch, members: dict[str, Any], loader: TreeLoader) -> None:
    """Everything outside of the trees; the setting last."""
    counters = dict(members.get("Counters") or {})
    least = {"nextInodes": loader.last_inode + 1, "nextChunk": loader.last_slice + 1}
    back = 0 if store.initial_counters else 1
    for shown, name in _COUNTERS.items():
        value = max(counters.get(shown, 0), least.get(shown, 0))
        await batch.put(CounterKey(name), value - (back if name in NEXT else 0))
    await batch.put(CounterKey("usedSpace"), loader.used_space)
    await batch.put(CounterKey("totalInodes"), loader.inodes)
    for one in members.get("Sustained") or ():
        for ino in one["inodes"]:
            await batch.put(SustainedKey(one["sid"], ino), True)
    for one in members.get("DelFiles") or ():
        await batch.put(DeletedFileKey(one["inode"], one["length"]), one["expire"])
    for name, what in _QUOTAS.items():
        for number, limits in (members.get(name) or {}).items():
            await batch.put(QuotaKey(what, int(number)), Quota(limits["maxSpace"], limits["maxInodes"], 0, 0))
    await batch.flush()
    await batch.put(SettingKey(), _setting(members).encode())
    await batch.flush()


async def _tree(loader: TreeLoader, events: Iterator[Event], top: int) -> None:
    """A tree, whose opening bracket comes next."""
    if next(events)[0] != "start_map":
        raise VolumeError(f"{_NOT_A_DUMP}: its tree is no object")
    members, has_entries = _members(events)
    if "attr" not in members:
        raise VolumeError(f"{_NOT_A_DUMP}: the top of its tree has no attributes")
    await loader.root(members, top)
    depth = 1
    if not has_entries:
        await loader.end()
        return
    while depth:
        event, name = next(events)
        if event == "map_key":
            if next(events)[0] != "start_map":
                raise VolumeError(f"{_NOT_A_DUMP}: entry {name!r} is no object")
            members, has_entries = _members(events)
            await loader.entry(name, members, has_entries=has_entries)
            depth += has_entries
        elif event == "end_map":
            await loader.end()
            depth -= 1
            while next(events)[0] != "end_map":  # the entry whose entries these were
                _value(events, next(events))
        else:
            raise VolumeError(f"{_NOT_A_DUMP}: its tree is damaged")


def _members(events: Iterator[Event]) -> tuple[dict[str, Any], bool]:
    """Members of an entry up to its end, or up to the opening bracket of its entries (and whether it was that)."""
    members: dict[str, Any] = {}
    for event, name in events:
        if event == "end_map":
            return members, False
        following = next(events)
        if name == "entries" and following[0] == "start_map":
            return members, True
        members[name] = _value(events, following)
    raise VolumeError(f"{_NOT_A_DUMP}: it is cut off")


def _value(events: Iterator[Event], first: Event) -> Any:
    """The value that begins with an event."""
    builder = ijson.ObjectBuilder()
    builder.event(*first)
    depth = int(first[0].startswith("start_"))
    while depth:
        event = next(events)
        builder.event(*event)
        depth += event[0].startswith("start_")
        depth -= event[0].startswith("end_")
    return builder.value
