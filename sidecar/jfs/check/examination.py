"""From a store to its damages, and the repair of those that can be (see `jfs.check`).

A mounted volume changes between the passes: it is examined twice, some seconds apart, and only what both found is damage.
Repair goes in rounds, what there is (attributes, names, removals) before the numbers that are counted from it, each round
examining anew.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from jfs.check import content, quotas, tree
from jfs.check.damage import Damage
from jfs.check.facts import Facts, gather
from jfs.errors import FsError
from jfs.meta.model.keys import EdgeKey
from jfs.meta.store.base import Store
from jfs.meta.volume import load_setting

log = logging.getLogger(__name__)

_ROUNDS: Final = 5
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
    if damages and facts.is_mounted:
        await asyncio.sleep(SETTLE)
        before = {damage.identity for damage in damages}
        facts = await gather(store, setting, now=now)
        damages = [damage for damage in _judged(facts, directory_mode) if damage.identity in before]
    return facts, damages


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
