"""Whether a commit was made whose answer was lost.

Place in the flow: both ways to commit (`script`, `transaction`) send their writes once; when the connection breaks before the
answer they ask here, and go on as after an answer, or run the attempt again. First the server is told to end the lost connection
(CLIENT KILL), so that what still lies in its buffers is never done later; a server that was started again has none. Then the
records are read: a commit is atomic, so one record that only this commit can have left proves it, and when everything that
the attempt had read is still as it was, it was not made.
Invariant: True and False are only said when they are sure; else StoreUnavailable says that the outcome is unknown. Nothing is
written. Any number of tasks at once.
"""

import asyncio
from typing import Any, Final, NamedTuple

from jfs.errors import StoreAway, StoreUnavailable
from jfs.meta.engines.redis import layout
from jfs.meta.engines.redis.connection import Command, Connection, pack
from jfs.meta.engines.redis.failures import ConnectionLost, ServerError
from jfs.meta.engines.redis.link import Link
from jfs.meta.engines.redis.transaction import RedisTx

_PATIENCE: Final = 30.0  # seconds for which a server that is gone is waited for
_UNREAD: Final = object()
# Records that are written without having been read and that no other client writes: a new inode, what belongs to the own session.
_OWN: Final = frozenset(("node", "sustained", "session", "delfile"))


class _Trace(NamedTuple):
    """A record that a commit leaves: *record* is None where it removes one; *fresh* when the key is nobody else's."""

    key: Any
    record: Any
    fresh: bool


async def was_made(link: Link, tx: RedisTx, lost: Connection) -> bool:
    """Whether the commit of *tx* that was sent over *lost* has been made. StoreUnavailable when that cannot be told."""
    deadline = asyncio.get_running_loop().time() + _PATIENCE
    while True:
        try:
            made = await _look(link, tx) if await _end(link, lost) else None
        except (StoreAway, ConnectionLost) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise StoreUnavailable(f"{error}; whether a change was made is unknown") from error
            await asyncio.sleep(link.address.min_retry_backoff)
            continue
        if made is None:
            raise StoreUnavailable(f"{lost.lost}; whether a change was made is unknown")
        return made


async def _end(link: Link, lost: Connection) -> bool:
    """Have the server end *lost*; whether it certainly does nothing any more."""
    connection = await link.shared()
    if not lost.run_id or not connection.run_id:
        return False
    if connection.run_id != lost.run_id:  # another process, to which the connection never led
        return True
    (answer,) = await connection.request(pack((b"CLIENT", b"KILL", b"ID", lost.client_id)), 1)
    return not isinstance(answer, ServerError)


async def _look(link: Link, tx: RedisTx) -> bool | None:
    """Whether it was made, None when that does not show."""
    traces = _traces(tx)
    readings = [layout.READING[trace.key.kind](trace.key) for trace in traces]
    appended = [
        (key, packed) for key, several in tx.appends.items() for packed, only_existing in several if not only_existing
    ]
    lists = [layout.READING[key.kind](key)[0] for key, _ in appended]
    before = list(tx.seen)
    commands: list[Command] = [*(command for reading in readings for command in reading), *lists, *before]
    if not traces and not appended:
        return None
    replies = iter(await link.read(commands))
    proven = removed = False
    left = 0
    for trace, reading in zip(traces, readings, strict=True):
        raw = [next(replies) for _ in reading]
        record = layout.DECODING[trace.key.kind](trace.key, raw)
        if trace.record is None:
            removed = True
            left += record is not None
        elif trace.fresh and trace.key.kind == "node":
            proven = proven or record is not None
        else:
            proven = proven or _same(record, trace.record)
    for _, packed in appended:
        proven = proven or packed in next(replies)
    if proven:
        return True
    if all(reply == tx.seen[command] for command, reply in zip(before, replies, strict=True)):
        return False
    only_removes = removed and not appended and all(trace.record is None for trace in traces)
    return True if only_removes and not left else None


def _traces(tx: RedisTx) -> list[_Trace]:
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


def _same(found: Any, written: Any) -> bool:
    if isinstance(found, tuple) and type(found) is tuple:  # lock records, in any order
        return isinstance(written, tuple) and sorted(map(repr, found)) == sorted(map(repr, written))
    return bool(found == written)
