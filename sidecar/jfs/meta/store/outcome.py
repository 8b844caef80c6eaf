"""Whether a commit was made whose answer was lost, as far as records tell.

Place in the flow: an engine whose connection breaks before the answer to a commit asks here, and goes on as after an answer, or
runs the attempt again. First it has the server end the lost connection, so that what still lies in its buffers is never done
later. Then the records are read: a commit is atomic, so one record that only this commit can have left proves it, and when
everything that the attempt had read is still as it was, it was not made. In a record of locks the own owner's entries decide, whatever
others have changed meanwhile: nobody else writes those, and the own client changes an inode's locks one after the other.
Invariant: True and False are only said when they are sure; else StoreUnavailable says that the outcome is unknown. Nothing is
written. Any number of tasks at once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

from jfs.errors import StoreAway, StoreUnavailable
from jfs.meta.model.keys import Key
from jfs.meta.store.tracking import TrackedTx

PATIENCE: Final = 30.0  # seconds for which a server that is gone is waited for
_PAUSE: Final = 0.05  # seconds between two looks for it
_RECORD: Final = 24  # bytes of a slice record
_UNREAD: Final = object()
# Records that are written without having been read and that no other client writes: a new inode, what belongs to the own session.
_OWN: Final = frozenset(("node", "sustained", "session", "delfile"))
_LOCKS: Final = frozenset(("flock", "plock"))


class Witness(Protocol):
    """What an engine tells about one lost commit. All of it may be asked again; StoreAway while the server is gone."""

    async def end(self) -> bool:
        """Have the server end the lost connection; whether it certainly does nothing any more."""
        ...

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        """Records as they are now."""
        ...

    async def holds(self) -> bool:
        """Whether everything that the attempt had read is still as it was."""
        ...


class _Trace(NamedTuple):
    """A record that a commit leaves: *record* is None where it removes one; *fresh* when the key is nobody else's."""

    key: Any
    record: Any
    fresh: bool


async def was_made(tx: TrackedTx, witness: Witness, lost: str) -> bool:
    """Whether the commit of *tx* has been made; *lost* says what happened to its answer. StoreUnavailable when that cannot be told."""
    made = await waiting(lambda: _look(tx, witness))
    if made is None:
        raise StoreUnavailable(f"{lost}; whether a change was made is unknown")
    return made


async def waiting(look: Callable[[], Awaitable[bool | None]]) -> bool | None:
    """What *look* finds, asked again while it says StoreAway. StoreUnavailable when it goes on to."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            return await look()
        except StoreAway as error:
            if asyncio.get_running_loop().time() > deadline:
                raise StoreUnavailable(f"{error}; whether a change was made is unknown") from error
        await asyncio.sleep(_PAUSE)


async def _look(tx: TrackedTx, witness: Witness) -> bool | None:
    """Whether it was made, None when that does not show."""
    if not await witness.end():
        return None
    traces = _traces(tx)
    appended = [
        (key, packed) for key, several in tx.appends.items() for packed, only_existing in several if not only_existing
    ]
    if not traces and not appended:
        return None
    found = iter(await witness.get(*(trace.key for trace in traces), *(key for key, _ in appended)))
    proven = removed = False
    left = 0
    for trace in traces:
        record = next(found)
        if trace.key.kind in _LOCKS:
            decided = _own_entries(record, trace.record, tx.reads[trace.key])
            if decided is not None:
                return decided
        elif trace.record is None:
            removed = True
            left += record is not None
        elif trace.fresh and trace.key.kind == "node":
            proven = proven or record is not None
        else:
            proven = proven or bool(record == trace.record)
    for _, packed in appended:
        slices = next(found) or b""
        proven = proven or packed in (slices[at : at + _RECORD] for at in range(0, len(slices), _RECORD))
    if proven:
        return True
    if await witness.holds():
        return False
    only_removes = removed and not appended and all(trace.record is None for trace in traces)
    return True if only_removes and not left else None


def _traces(tx: TrackedTx) -> list[_Trace]:
    """What shows whether the commit was made: records that it changes."""
    traces = []
    for key, record in tx.writes.items():
        before = tx.reads.get(key, _UNREAD)
        if record is None:
            if before is not _UNREAD and before is not None and key.kind != "sliceref":
                traces.append(_Trace(key, None, False))
        elif before is _UNREAD:
            if key.kind in _OWN:
                traces.append(_Trace(key, record, True))
        elif record != before:
            traces.append(_Trace(key, record, False))
    # An inode's times are this commit's alone, while two clients may make the same entry.
    if any(trace.key.kind == "node" and trace.record is not None for trace in traces):
        traces = [trace for trace in traces if trace.key.kind != "edge" or trace.record is None]
    return traces


def _own_entries(found: Any, written: Any, before: Any) -> bool | None:
    """Whether a record of locks shows the change from *before* to *written*, which is one owner's; None when that owner's entries are
    neither as before nor as written: another client has cleared the session."""
    entries, new, old = (frozenset(record or ()) for record in (found, written, before))
    if new - old <= entries and not (old - new) & entries:
        return True
    if old - new <= entries and not (new - old) & entries:
        return False
    return None
