"""Session records and the election of background jobs (format §7.1, §7.2). Pure."""

from jfs.meta.model.keys import CounterKey, Session, SessionKey
from jfs.meta.operations import journal
from jfs.meta.store.base import Tx


async def write_session(tx: Tx, sid: int, expire: int, info: bytes, *, begins: bool = False) -> None:
    """Start (*begins*), prolong, or write again a session that another client took for dead; *expire* in unix seconds."""
    tx.put(SessionKey(sid), Session(expire, info))
    if begins:
        journal.started_session(tx, sid, expire, info)


async def end_session(tx: Tx, sid: int) -> None:
    """Remove a session's record, when nothing else of it is left."""
    tx.delete(SessionKey(sid))
    journal.cleaned_session(tx, sid)


async def elect(tx: Tx, counter: str, now: int, period: int) -> bool:
    """Whether this client runs the job of *counter*: its last run (unix seconds) is *period* seconds or more ago (setIfSmall), or so far
    ahead that it was noted by a clock that is wrong."""
    key = CounterKey(counter)
    (last,) = await tx.get(key)
    if now - period < (last or 0) <= now + period:
        return False
    tx.put(key, now)
    journal.set_counter(tx, counter, now)
    return True
