"""TiKV's transactions (Percolator: optimistic, snapshot isolation): an attempt reads at one timestamp and commits in two phases.

What an attempt has read and does not write is locked with the rest, so that a change of it since is a conflict as well. Locks of
others that are met are resolved as their primary says: those of a dead client are rolled back or committed. When the answer to
the commit of the primary is lost, its state is asked for: the outcome is always known. One event loop.
"""

import asyncio
import errno
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from jfs.errors import Conflict, FsError, StoreAway, StoreUnavailable
from jfs.meta.engines.kv.database import PAGE, Attempt, Database, Pair
from jfs.meta.engines.kv.placement import PATIENCE, Lost, Place, Placement
from jfs.meta.engines.kv.proto import tikv_pb2 as pb
from jfs.meta.engines.kv.url import KvAddress
from jfs.meta.store.outcome import waiting

log = logging.getLogger(__name__)

LATEST: Final = (1 << 64) - 1
_LOCK_TTL: Final = 5000  # milliseconds after which others may roll back a commit that does not get on
_TOGETHER: Final = 512  # keys of one request
_LARGEST: Final = 6 << 20  # bytes of one value, TiKV's default limit of an entry


class Own(NamedTuple):
    """A transaction that looks at ranges in which it has locks: its start, and what was there then."""

    started: int
    before: Mapping[bytes, bytes]


class _Range(NamedTuple):
    """A range that was read, with what was found."""

    start: bytes
    end: bytes
    limit: int
    values: bool
    found: list[Pair]


class TikvDatabase(Database):
    """A volume's keys in TiKV."""

    name = "tikv"

    def __init__(self, address: KvAddress) -> None:
        self.placement = Placement(address)
        self._prefix = address.prefix
        self._finishing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self.placement.open()
        await self.page(b"", b"\xff", 1, values=False)

    # Reads at a timestamp.

    async def read(self, keys: Sequence[bytes], version: int) -> dict[bytes, bytes]:
        """Values that there are."""
        found: dict[bytes, bytes] = {}
        todo = [self._prefix + key for key in keys]
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while todo:
            again: list[bytes] = []
            for group in await self.placement.by_region(todo):
                again += await self._read_group(group, version, found)
            todo = again
            if todo and asyncio.get_running_loop().time() > deadline:
                raise StoreUnavailable(f"{self.placement.where}: a lock of another client stays; is it dead?")
        return found

    async def _read_group(self, group: list[bytes], version: int, found: dict[bytes, bytes]) -> list[bytes]:
        """Read keys of one region; those that have to be asked for again."""

        def build(place: Place) -> Any:
            return pb.BatchGetRequest(keys=_within(group, place), version=version)

        place, answer = await self.placement.send(group[0], "KvBatchGet", build, pb.BatchGetResponse)
        asked = _within(group, place)
        again = group[len(asked) :]
        locked = []
        for pair in answer.pairs:
            if pair.HasField("error"):
                locked.append(_lock_of(pair.error))
            else:
                found[pair.key[len(self._prefix) :]] = pair.value
        if answer.HasField("error"):
            await self._resolve(_lock_of(answer.error), version)
            return group
        for lock in locked:
            await self._resolve(lock, version)
            again.append(lock.key)
        return again

    async def scan_at(
        self, start: bytes, end: bytes, limit: int, version: int, *, values: bool, own: "Own | None" = None
    ) -> list[Pair]:
        """Pairs of a range in order, at most *limit* when it is not 0. Locks of the transaction *own* are read as what was there
        when it began."""
        cut = len(self._prefix)
        at, stop = self._prefix + start, self._prefix + end
        found: list[Pair] = []
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while at < stop:
            wanted = min(PAGE, limit - len(found)) if limit else PAGE

            def build(place: Place, at: bytes = at, wanted: int = wanted) -> Any:
                last = min(stop, place.end) if place.end else stop
                return pb.ScanRequest(start_key=at, end_key=last, limit=wanted, version=version, key_only=not values)

            place, answer = await self.placement.send(at, "KvScan", build, pb.ScanResponse)
            locks = [_lock_of(pair.error) for pair in answer.pairs if pair.HasField("error")]
            if own is not None:
                locks = [lock for lock in locks if lock.lock_version != own.started]
            if answer.HasField("error"):
                locks.append(_lock_of(answer.error))
            if locks:
                for lock in locks:
                    await self._resolve(lock, version)
                if asyncio.get_running_loop().time() > deadline:
                    raise StoreUnavailable(f"{self.placement.where}: a lock of another client stays; is it dead?")
                continue
            for pair in answer.pairs:
                if not pair.HasField("error"):
                    found.append((pair.key[cut:], pair.value))
                elif own is not None and (key := pair.error.locked.key[cut:]) in own.before:
                    found.append((key, own.before[key]))
            if limit and len(found) >= limit:
                break
            if len(answer.pairs) >= wanted:
                last = answer.pairs[-1]
                at = (last.error.locked.key if last.HasField("error") else last.key) + b"\0"
            elif place.end and place.end < stop:
                at = place.end
            else:
                break
        return found

    # Locks of others.

    async def _resolve(self, lock: Any, caller: int) -> None:
        """Take a lock away when its transaction has ended or its client is dead; else wait a moment."""
        now = await self.placement.timestamp()
        expired = (now >> 18) >= (lock.lock_version >> 18) + lock.lock_ttl
        status = await self._status(lock.primary_lock, lock.lock_version, caller, now, expired)
        if status is None:
            await asyncio.sleep(0.005 + 0.02 * random.random())
            return
        await self._settle([lock.key], lock.lock_version, status)

    async def _status(self, primary: bytes, started: int, caller: int, now: int, expired: bool) -> int | None:
        """The timestamp at which a transaction was committed, 0 when it was rolled back, None while it lives."""

        def build(place: Place) -> Any:
            return pb.CheckTxnStatusRequest(
                primary_key=primary,
                lock_ts=started,
                caller_start_ts=0 if caller == LATEST else caller,
                current_ts=now,
                rollback_if_not_exist=expired,
            )

        _, answer = await self.placement.send(primary, "KvCheckTxnStatus", build, pb.CheckTxnStatusResponse)
        if answer.HasField("error"):
            return None  # not there (yet), or locked by another: looked at again
        if answer.commit_version:
            return int(answer.commit_version)
        if answer.lock_info.use_async_commit and expired:
            return await self._async_status(primary, started, answer.lock_info)
        return None if answer.lock_ttl else 0

    async def _async_status(self, primary: bytes, started: int, lock: Any) -> int | None:
        """As `_status`, of a transaction that is committed by all its locks being there (real clients make such ones)."""
        committed, least, present = 0, lock.min_commit_ts, 0
        for group in await self.placement.by_region(list(lock.secondaries)):

            def build(place: Place, group: list[bytes] = group) -> Any:
                return pb.CheckSecondaryLocksRequest(keys=group, start_version=started)

            _, answer = await self.placement.send(
                group[0], "KvCheckSecondaryLocks", build, pb.CheckSecondaryLocksResponse
            )
            if answer.HasField("error"):
                return None
            committed = max(committed, answer.commit_ts)
            present += len(answer.locks)
            least = max([least, *(one.min_commit_ts for one in answer.locks)])
        if not committed and present == len(lock.secondaries):
            committed = least
        await self._settle([primary, *lock.secondaries], started, committed)
        return committed

    async def _settle(self, keys: Sequence[bytes], started: int, committed: int) -> None:
        """Turn locks into what their transaction ended as."""
        for group in await self.placement.by_region(keys):

            def build(place: Place, group: list[bytes] = group) -> Any:
                return pb.ResolveLockRequest(
                    start_version=started, commit_version=committed, keys=_within(group, place)
                )

            await self.placement.send(group[0], "KvResolveLock", build, pb.ResolveLockResponse)

    # Commits.

    async def write(
        self,
        started: int,
        changes: Mapping[bytes, bytes | None],
        guarded: Sequence[bytes],
        recheck: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Store changes if neither they nor the guarded keys were changed since, nor *recheck* objects once all are locked.
        Conflict, StoreUnavailable."""
        mutations = {self._prefix + key: _mutation(self._prefix + key, value) for key, value in changes.items()}
        for key in guarded:
            if key not in changes:
                whole = self._prefix + key
                mutations[whole] = pb.Mutation(op=pb.Mutation.Lock, key=whole)
        primary = self._prefix + next(iter(changes))
        try:
            await self._prewrite(started, primary, mutations)
            if recheck is not None:
                await recheck()
        except BaseException:
            self._finish(self._roll_back(started, list(mutations)))
            raise
        await self._commit(started, primary, list(mutations))

    async def _prewrite(self, started: int, primary: bytes, mutations: dict[bytes, Any]) -> None:
        todo = list(mutations)
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while todo:
            again: list[bytes] = []
            for group in await self.placement.by_region(todo):
                for at in range(0, len(group), _TOGETHER):
                    again += await self._prewrite_group(started, primary, mutations, group[at : at + _TOGETHER])
            todo = again
            if todo and asyncio.get_running_loop().time() > deadline:
                raise StoreUnavailable(f"{self.placement.where}: a lock of another client stays; is it dead?")

    async def _prewrite_group(
        self, started: int, primary: bytes, mutations: dict[bytes, Any], group: list[bytes]
    ) -> list[bytes]:
        def build(place: Place) -> Any:
            return pb.PrewriteRequest(
                mutations=[mutations[key] for key in _within(group, place)],
                primary_lock=primary,
                start_version=started,
                lock_ttl=_LOCK_TTL,
                txn_size=len(mutations),
                min_commit_ts=started + 1,
            )

        place, answer = await self.placement.send(group[0], "KvPrewrite", build, pb.PrewriteResponse)
        asked = _within(group, place)
        locks = [_lock_of(error) for error in answer.errors]
        for lock in locks:
            await self._resolve(lock, started)
        return group if locks else group[len(asked) :]

    async def _commit(self, started: int, primary: bytes, keys: list[bytes]) -> None:
        committed = await self.placement.timestamp()
        own = next(group for group in await self.placement.by_region(keys) if primary in group)
        own.remove(primary)
        own.insert(0, primary)

        def build(place: Place) -> Any:
            return pb.CommitRequest(start_version=started, commit_version=committed, keys=_within(own, place))

        try:
            place, answer = await self.placement.send(primary, "KvCommit", build, pb.CommitResponse, once=True)
        except Lost:
            await self._find_out(started, primary, keys)
            return
        if answer.HasField("error"):
            if answer.error.HasField("commit_ts_expired"):
                await self._commit(started, primary, keys)
                return
            self._finish(self._roll_back(started, keys))
            raise Conflict
        done = set(_within(own, place))
        if rest := [key for key in keys if key not in done]:
            self._finish(self._settle(rest, started, committed))

    async def _find_out(self, started: int, primary: bytes, keys: list[bytes]) -> None:
        """The answer to the primary's commit is lost: returns when it was committed, Conflict when it was not and never will be."""

        async def look() -> bool | None:
            now = await self.placement.timestamp()
            status = await self._status(primary, started, now, now + (_LOCK_TTL << 18), True)
            if status is None:
                raise StoreAway("the primary lock stays")
            self._finish(self._settle(keys, started, status))
            return bool(status)

        if not await waiting(look):
            raise Conflict

    async def _roll_back(self, started: int, keys: list[bytes]) -> None:
        for group in await self.placement.by_region(keys):

            def build(place: Place, group: list[bytes] = group) -> Any:
                return pb.BatchRollbackRequest(start_version=started, keys=_within(group, place))

            await self.placement.send(group[0], "KvBatchRollback", build, pb.BatchRollbackResponse)

    def _finish(self, work: Any) -> None:
        """Let something end that nobody waits for; who meets its locks before resolves them himself."""

        async def finish() -> None:
            try:
                await work
            except (StoreUnavailable, FsError) as error:
                log.info("locks of an ended transaction are left to whoever meets them: %s", error)

        task = asyncio.create_task(finish(), name="locks")
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    # The interface.

    def attempt(self, *, fresh: bool) -> "TikvAttempt":
        return TikvAttempt(self)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found = await self.read(keys, LATEST)
        return [found.get(key) for key in keys]

    async def page(self, start: bytes, end: bytes, limit: int, *, values: bool = True) -> list[Pair]:
        return await self.scan_at(start, end, limit, await self.placement.timestamp(), values=values)

    async def remove_all(self) -> None:
        while pairs := await self.page(b"", b"\xff", _TOGETHER, values=False):
            await self.write(await self.placement.timestamp(), dict.fromkeys((key for key, _ in pairs), None), ())

    async def close(self) -> None:
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=5)
        for task in list(self._finishing):
            task.cancel()
        await self.placement.close()


class TikvAttempt(Attempt):
    """A snapshot, taken at the first read."""

    def __init__(self, database: TikvDatabase) -> None:
        self._database = database
        self._started = 0
        self._read: dict[bytes, bytes | None] = {}
        self._ranges: list[_Range] = []

    @property
    def needs_check(self) -> bool:
        """Never: a snapshot was true at its moment."""
        return False

    async def _start(self) -> int:
        if not self._started:
            self._started = await self._database.placement.timestamp()
        return self._started

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        asked = [key for key in dict.fromkeys(keys) if key not in self._read]
        if asked:
            found = await self._database.read(asked, await self._start())
            self._read.update((key, found.get(key)) for key in asked)
        return [self._read[key] for key in keys]

    async def scan(self, start: bytes, end: bytes, limit: int = 0, *, values: bool = True) -> list[Pair]:
        found = await self._database.scan_at(start, end, limit, await self._start(), values=values)
        if values:
            self._read.update(found)
        self._ranges.append(_Range(start, end, limit, values, found))
        return found

    async def commit(self, changes: Mapping[bytes, bytes | None]) -> None:
        if any(value is not None and len(value) > _LARGEST for value in changes.values()):
            raise FsError(errno.E2BIG)
        if changes:
            recheck = self._recheck if self._ranges else None
            await self._database.write(await self._start(), changes, list(self._read), recheck)

    async def log_ids(self, count: int) -> list[int]:
        """As the real client: when the transaction began; more of them are later moments."""
        return [await self._start(), *[await self._database.placement.timestamp() for _ in range(count - 1)]]

    async def _recheck(self) -> None:
        """Conflict when a range is not what it was: names that appeared in it are no conflict of keys."""
        now = await self._database.placement.timestamp()
        for one in self._ranges:
            own = Own(self._started, dict(one.found))
            if one.found != await self._database.scan_at(
                one.start, one.end, one.limit, now, values=one.values, own=own
            ):
                raise Conflict

    async def check(self) -> None:
        return

    async def drop(self) -> None:
        return


def _mutation(key: bytes, value: bytes | None) -> Any:
    if value is None:
        return pb.Mutation(op=pb.Mutation.Del, key=key)
    return pb.Mutation(op=pb.Mutation.Put, key=key, value=value)


def _within(keys: list[bytes], place: Place) -> list[bytes]:
    """The first keys of a sorted list that lie in a region."""
    if not place.end:
        return keys
    inside = [key for key in keys if key < place.end]
    return inside or keys[:1]


def _lock_of(error: Any) -> Any:
    """The lock that is in the way. Conflict for what else a key's error says: the attempt is to be run again."""
    if error.HasField("locked"):
        return error.locked
    raise Conflict
