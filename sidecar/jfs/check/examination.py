"""From a store to its damages, and the repair of those that can be (see `jfs.check`).

A mounted volume changes between the passes: what seems wrong is looked at again, up to four times some seconds apart, and only
what was found every time is damage.
Repair goes in rounds, what there is (attributes, names, removals) before the numbers that are counted from it, each round
examining anew.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from jfs.check import content, quotas, tree
from jfs.check.damage import Damage
from jfs.check.facts import Facts, gather
from jfs.errors import FsError
from jfs.format.constants import DIRECTORY
from jfs.meta.model.keys import DirStat, DirStatKey, EdgeKey, NodeKey
from jfs.meta.operations.rules import usage
from jfs.meta.store.base import Store
from jfs.meta.volume import load_setting

log = logging.getLogger(__name__)

_ROUNDS: Final = 5
_LOOKS: Final = 4  # further ones at a mounted volume, as long as something seems wrong
_TRIES: Final = 20  # to find a directory unchanged while it is listed
SETTLE: Final = (
    3.0  # seconds after which real clients have written the usage and counters that they collect (format §7.2)
)
# Numbers that are counted from inodes and entries.
_COUNTED: Final = frozenset({"nlink", "usage", "parent", "parents", "quota", "counter"})
# What numbers are counted from, to be repaired before them.
_STRUCTURE: Final = frozenset({"attributes", "removed", "sustained", "leaked", "queue", "leftover"})


async def check(store: Store) -> list[Damage]:
    """All damages of a volume's metadata; notes left out. For tests: `assert not await check(store)`."""
    _, damages = await examine(store)
    return [damage for damage in damages if not damage.note]


async def examine(store: Store, *, directory_mode: int = 0o755, now: int | None = None) -> tuple[Facts, list[Damage]]:
    """What is known of the volume, and its damages and notes. *now* in unix seconds. VolumeError when there is no volume."""
    setting = await load_setting(store)
    now = int(time.time()) if now is None else now
    facts = await gather(store, setting, now=now)
    damages = _judged(facts, directory_mode)
    looks = _LOOKS if facts.is_mounted else 0
    while looks and any(not damage.note for damage in damages):
        looks -= 1
        await asyncio.sleep(SETTLE * random.uniform(0.5, 1.0) if looks < _LOOKS - 1 else SETTLE)
        before = {damage.identity for damage in damages}
        facts = await gather(store, setting, now=now)
        damages = [damage for damage in _judged(facts, directory_mode) if damage.identity in before]
        damages = [damage for damage in damages if await _still_holds(store, facts, damage)]
    return facts, damages


async def _still_holds(store: Store, facts: Facts, damage: Damage) -> bool:
    """Whether a number of a directory is wrong at one moment, too: a busy directory differs by the same between any two passes."""
    ino = damage.place
    if damage.kind not in ("nlink", "usage") or not isinstance(ino, int):
        return True
    node = facts.nodes.get(ino)
    if node is None or node.kind != DIRECTORY:
        return True
    for _ in range(_TRIES):
        before = await store.get(NodeKey(ino), DirStatKey(ino))
        total, subdirectories = DirStat(0, 0, 0), 0
        async for page in store.list_directory(ino, plus=True):
            subdirectories += sum(entry.kind == DIRECTORY for entry in page.entries)
            for attr in page.attrs or ():
                if attr is not None:
                    total = DirStat(*map(sum, zip(total, usage(attr), strict=True)))
        if before == await store.get(NodeKey(ino), DirStatKey(ino)):
            attr, stat = before
            return attr is not None and (attr.nlink != 2 + subdirectories if damage.kind == "nlink" else stat != total)
    return False


def _judged(facts: Facts, directory_mode: int) -> list[Damage]:
    damages = [*tree.judge(facts, directory_mode=directory_mode), *content.judge(facts), *quotas.judge(facts)]
    if facts.unreadable or any(isinstance(key, EdgeKey) for key, _ in facts.corrupt):
        damages = [_unrepairable(damage) if damage.kind in _COUNTED else damage for damage in damages]
    return damages


def _unrepairable(damage: Damage) -> Damage:
    return replace(damage, fix=None, remedy="a record that cannot be read may account for the difference")


async def repair(
    store: Store,
    *,
    directory_mode: int = 0o755,
    wanted: Callable[[Facts, Damage], bool] = lambda facts, damage: True,
    forms: bool = True,
) -> list[Damage]:
    """Put right what can be without a guess, as far as *wanted* says, and with *forms* the form of records; the damages that were."""
    done: list[Damage] = []
    for _ in range(_ROUNDS):
        flaws = await store.flaws(repair=False) if forms else []
        if flaws:
            left = await store.flaws(repair=True)
            done += [Damage("form", None, flaw) for flaw in flaws if flaw not in left]
        facts, damages = await examine(store, directory_mode=directory_mode)
        fixable = [one for one in damages if one.fix is not None and wanted(facts, one)]
        if not fixable:
            break
        for damage in [one for one in fixable if one.kind in _STRUCTURE] or fixable:
            assert damage.fix is not None
            try:
                await store.run(damage.fix)
            except FsError as error:
                log.warning("%s: cannot be repaired now: %s", damage.text, error)
            else:
                done.append(damage)
    return done
