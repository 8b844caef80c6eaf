"""Advisory locks of the mount: taking, waiting, giving back, and who holds what here (format §5.3 flock/fcntl, §5.6).

The records decide; this keeps only which owners hold something, so that closing a file without locks asks nobody. A waiter keeps its
place in its inode's queue and tries again when something it overlaps was given back through this mount – one waiter after the
other, and none that would find what the one before it has just taken – or, when another session is in the way, after a
pause of 1 ms that grows to 10 ms for each waiter of the inode. Invariant: a try under way is never torn: a cancelled wait ends
after it, with the lock when the try got it. Deadlocks are not detected. One event loop.
"""

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final

from jfs import eager
from jfs.errors import FsError, StoreError
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import NodeKey
from jfs.meta.model.locks import END, UNLOCK, WRITE, FlockKey, PlockKey, Range
from jfs.meta.operations import locking
from jfs.meta.operations.locking import Tried
from jfs.meta.store.base import Store, Tx

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.001  # seconds
_LONGEST_PAUSE: Final = 0.010
_OWN_PAUSE: Final = 1.0  # the own session is in the way: its unlock wakes, unless another client cleared the session
_FIRST_RETRY: Final = 1.0
_LONGEST_RETRY: Final = 30.0

_Name = tuple[int, bool]  # inode, whether fcntl ranges are meant


class _Waiter:
    """One waiting request. *due*: something it overlaps was given back since it last tried."""

    __slots__ = ("due", "owner", "turn", "wanted")

    def __init__(self, owner: int, wanted: Range) -> None:
        self.owner = owner
        self.wanted = wanted
        self.due = False
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Locks:
    """See the module. *sid* gives the own session, which locks are recorded under; *learn* takes attributes that were read after a
    lock was had, and the *tick* at which that began."""

    def __init__(
        self,
        store: Store,
        sid: Callable[[], int],
        *,
        tick: Callable[[], int] = lambda: 0,
        learn: Callable[[int, Attr, int], Attr] = lambda ino, attr, started: attr,
    ) -> None:
        self._store = store
        self._sid = sid
        self._tick = tick
        self._learn = learn
        self._held: dict[_Name, set[int]] = {}
        self._queues: dict[_Name, list[_Waiter]] = {}
        self._late: dict[tuple[int, int], asyncio.Task[None]] = {}

    def holds(self, ino: int, owner: int) -> bool:
        """Whether *owner* may hold any lock of *ino*."""
        held = self._held
        return bool(held) and (owner in held.get((ino, True), ()) or owner in held.get((ino, False), ()))

    def holds_ranges(self, ino: int, owner: int) -> bool:
        """Whether *owner* may hold fcntl locks of *ino*."""
        return bool(self._held) and owner in self._held.get((ino, True), ())

    async def flock(self, ino: int, owner: int, kind: int, *, wait: bool) -> Attr | None:
        """Change *owner*'s flock to READ, WRITE or UNLOCK; the inode's attributes as they were once the lock was had, None when it was
        given back or the inode is gone. FsError(EAGAIN) when others are in the way and not *wait*; asyncio.CancelledError ends a wait."""

        async def operation(tx: Tx) -> Tried:
            return await locking.flock(tx, self._sid(), ino, owner, kind)

        return await self._have((ino, False), owner, Range(kind, 0, 0, END), operation, wait=wait)

    async def setlk(self, ino: int, owner: int, wanted: Range, *, wait: bool) -> Attr | None:
        """Lock or unlock a range for *owner*; as `flock`."""

        async def operation(tx: Tx) -> Tried:
            return await locking.setlk(tx, self._sid(), ino, owner, wanted)

        return await self._have((ino, True), owner, wanted, operation, wait=wait)

    async def getlk(self, ino: int, owner: int, wanted: Range) -> Range | None:
        """The first lock that *wanted* would wait for; its pid is 0 when it is of another mount."""
        (found,) = await self._store.get(PlockKey(ino))
        return locking.conflicting(found, self._sid(), owner, wanted)

    async def release(self, ino: int, owner: int) -> None:
        """Give back whatever *owner*, whose file is closed, holds of *ino*. When the database does not answer it is tried again until
        it does: nobody else will."""
        try:
            await self._release(ino, owner)
        except StoreError as error:
            log.warning("locks of inode %d were not given back, tried again: %s", ino, error)
            key = ino, owner
            if key not in self._late:
                task = self._late[key] = asyncio.create_task(self._release_late(ino, owner), name="late unlock")
                task.add_done_callback(lambda _: self._late.pop(key, None))

    async def _release(self, ino: int, owner: int) -> None:
        await self.flock(ino, owner, UNLOCK, wait=False)
        await self.release_ranges(ino, owner)

    async def _release_late(self, ino: int, owner: int) -> None:
        pause = _FIRST_RETRY
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY)
            with contextlib.suppress(StoreError):
                await self._release(ino, owner)
                return

    async def release_ranges(self, ino: int, owner: int) -> None:
        """Give back all fcntl locks of *owner*."""
        await self.setlk(ino, owner, Range(UNLOCK, 0, 0, END), wait=False)

    async def restore(self, inos: Iterable[int]) -> None:
        """Learn what the session holds of *inos*, whose locks a predecessor took."""
        sid = self._sid()
        for ino in inos:
            flocks, plocks = await self._store.get(FlockKey(ino), PlockKey(ino))
            for name, found in (((ino, False), flocks), ((ino, True), plocks)):
                owners = {lock.owner for lock in found or () if lock.sid == sid}
                if owners:
                    self._held[name] = owners

    async def forget(self) -> None:
        """The session has ended, and with it its locks."""
        self._held.clear()
        late = list(self._late.values())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _have(
        self, name: _Name, owner: int, wanted: Range, operation: Callable[[Tx], Awaitable[Tried]], *, wait: bool
    ) -> Attr | None:
        if wanted.kind != UNLOCK and (late := self._late.get((name[0], owner))) is not None:
            await asyncio.shield(late)  # the kernel has given the number of a closed file to another one
        if wanted.kind == UNLOCK and owner not in self._held.get(name, ()):
            return None
        if not wait or wanted.kind == UNLOCK:
            tried, attr = await self._try(name, owner, wanted, operation)
            if tried.blocker is not None:
                raise FsError(errno.EAGAIN)
            return attr
        if name not in self._queues:  # nobody waits: most likely it is free
            tried, attr = await _whole(self._try(name, owner, wanted, operation))
            if tried.blocker is None:
                return attr
        waiter = _Waiter(owner, wanted)  # tries again at once: what was given back meanwhile has woken nobody
        queue = self._queues.setdefault(name, [])
        queue.append(waiter)
        pause = _FIRST_PAUSE
        try:
            while True:
                tried, attr = await _whole(self._try(name, owner, wanted, operation))
                if tried.blocker is None:
                    return attr
                self._pass_on(name)
                own = tried.blocker == self._sid()
                await asyncio.wait([waiter.turn], timeout=_OWN_PAUSE if own else pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE * len(queue))
                if waiter.turn.done():
                    waiter.turn = asyncio.get_running_loop().create_future()
        finally:
            queue.remove(waiter)
            self._pass_on(name)
            if not queue and self._queues.get(name) is queue:
                del self._queues[name]

    async def _try(
        self, name: _Name, owner: int, wanted: Range, operation: Callable[[Tx], Awaitable[Tried]]
    ) -> tuple[Tried, Attr | None]:
        ino, attr = name[0], None
        started = self._tick()
        try:
            if wanted.kind == UNLOCK:
                tried = await self._store.run(operation, near=(ino,))
            else:
                tried, attr = await self._store.run_then_get(operation, NodeKey(ino), near=(ino,))
        except StoreError:  # perhaps it was taken: the close will give it back
            self._held.setdefault(name, set()).add(owner)
            raise
        if tried.holds:
            self._held.setdefault(name, set()).add(owner)
        elif (owners := self._held.get(name)) is not None:
            owners.discard(owner)
            if not owners:
                del self._held[name]
        queue = self._queues.get(name)
        if queue:
            for waiter in queue:
                if tried.lost and _overlap(waiter.wanted, wanted):
                    waiter.due = True
                if tried.blocker is None and waiter.owner != owner and _exclude(waiter.wanted, wanted):
                    waiter.due = False
            if tried.lost:
                self._pass_on(name)
        if attr is None or tried.blocker is not None:
            return tried, None
        return tried, self._learn(ino, attr, started)

    def _pass_on(self, name: _Name) -> None:
        """Wake the first waiter that has reason to try."""
        for waiter in self._queues.get(name, ()):
            if waiter.due:
                waiter.due = False
                if not waiter.turn.done():
                    waiter.turn.set_result(None)
                return


def _overlap(one: Range, other: Range) -> bool:
    return one.start <= other.end and other.start <= one.end


def _exclude(one: Range, other: Range) -> bool:
    """Whether two owners cannot have both."""
    return UNLOCK not in (one.kind, other.kind) and WRITE in (one.kind, other.kind) and _overlap(one, other)


async def _whole(attempt: Coroutine[Any, Any, tuple[Tried, Attr | None]]) -> tuple[Tried, Attr | None]:
    """Run a try to its end, whoever cancels meanwhile; the cancellation goes on unless the lock was had."""
    task = eager.begin(attempt)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    tried = task.result()
    if cancelled is not None and tried[0].blocker is not None:
        raise cancelled
    return tried
