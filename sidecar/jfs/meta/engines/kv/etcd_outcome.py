"""Whether an etcd transaction was made whose answer was lost, told from etcd's history.

Place in the flow: `etcd` asks here when the answer to a commit does not come. A commit compares the revisions of what its attempt has
read, so one of these keys is stored again with the value that it has: a request that still lies somewhere fails from then on. What
the commit would have stored is then looked for, backwards from that moment to the last revision known before it was sent: a
revision at which every one of its keys was changed as it wanted is the commit.
Invariant: True and False are only said when they are sure; StoreUnavailable says that the outcome is unknown (nothing was compared
that could be touched, the history was compacted, or is too long). Any number of tasks at once.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from jfs.errors import StoreUnavailable
from jfs.meta.store.outcome import waiting

_STEPS: Final = 64  # requests for looks back
_TOGETHER: Final = 128  # revisions of one look


class Compacted(StoreUnavailable):
    """The history that was asked for is not there any more."""


class Found(NamedTuple):
    """A value with the revision that stored it; revision 0 says that there is none."""

    value: bytes | None
    revision: int


class History(Protocol):
    """What is asked of the database. StoreAway while it is gone."""

    async def at(self, looks: list[tuple[bytes, int]]) -> list[Found]:
        """Keys as they were at revisions, at most 128. Compacted."""
        ...

    async def touch(self, key: bytes, revision: int) -> tuple[bool, int]:
        """Store a key that has *revision* again as it is; whether it had, and the database's revision afterwards."""
        ...


async def was_made(
    history: History, compared: Mapping[bytes, int], changes: Mapping[bytes, bytes | None], since: int, lost: str
) -> bool:
    """Whether *changes* were made after revision *since* by a commit that compared revisions. StoreUnavailable when that cannot be
    told."""
    try:
        made = await waiting(lambda: _look(history, compared, changes, since))
    except Compacted as error:
        raise StoreUnavailable(f"{lost}, and {error}; whether a change was made is unknown") from error
    if made is None:
        raise StoreUnavailable(f"{lost}; whether a change was made is unknown")
    return made


async def _look(
    history: History, compared: Mapping[bytes, int], changes: Mapping[bytes, bytes | None], since: int
) -> bool | None:
    present = [key for key, revision in compared.items() if revision]
    changed = [key for key in present if key in changes]
    anchor = next(iter(changed or present), None)
    if anchor is None:
        return None
    touched, now = await history.touch(anchor, compared[anchor])
    if touched and anchor in changes:
        return False
    trace = next((key for key, value in changes.items() if value is not None), None)
    if trace is None:  # it only removes, which can be seen of what was there
        trace = next(iter(changed), None)
        if trace is None:
            return None
        (state,) = await history.at([(trace, now)])
        return state.value is None
    return await _found(history, trace, changes, since, now)


async def _found(
    history: History, trace: bytes, changes: Mapping[bytes, bytes | None], since: int, now: int
) -> bool | None:
    """Whether a revision after *since* up to *now* made the changes, *trace* being one that is stored."""
    for _ in range(_STEPS):
        if now <= since:
            return False
        states = await history.at([(trace, at) for at in range(now, max(since, now - _TOGETHER), -1)])
        for revision in {state.revision for state in states if state.value == changes[trace]}:
            if revision > since and await _is_the_commit(history, changes, revision):
                return True
        now -= len(states)
    return None


async def _is_the_commit(history: History, changes: Mapping[bytes, bytes | None], revision: int) -> bool:
    keys = list(changes)
    for key, state in zip(keys, await history.at([(key, revision) for key in keys]), strict=True):
        if state.value != changes[key] or (state.value is not None and state.revision != revision):
            return False
    return True
