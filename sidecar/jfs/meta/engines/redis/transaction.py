"""An attempt on Redis: reading commands with the replies they gave, and the list of commands a commit sends.

`RedisTx` is what both ways to commit share. `WatchTx` is the real client's way (format §5.1): WATCH and the reads in one
packet on a private connection, MULTI … EXEC in the next. The other way is in `script`. Invariant: `seen` has every reply
the attempt rests on.
"""

import abc
from collections.abc import Sequence
from typing import Any, Final

from jfs.errors import Conflict
from jfs.meta.engines.redis.connection import Command, Connection, pack_all
from jfs.meta.engines.redis.failures import ConnectionLost, ServerError, converted, first_error
from jfs.meta.engines.redis.layout import ADD_TO_EXISTING, DECODING, REMEMBERED, Layout, added, as_read
from jfs.meta.model.keys import CounterKey, DirStatKey, Key, ParentKey, XattrKey
from jfs.meta.model.quota import DIRECTORY, QuotaKey
from jfs.meta.store.change_log import LogEntry, incremented
from jfs.meta.store.tracking import TrackedTx

_ACL_IDS: Final = CounterKey("aclMaxId")


class RedisTx(TrackedTx):
    """An attempt in terms of commands."""

    __slots__ = ("_layout", "batches", "seen", "stored")

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout
        self.seen: dict[Command, Any] = {}
        self.stored: dict[Any, Any] = {}  # replies of REMEMBERED kinds after what `commands` writes
        self.batches = 0  # round trips for reads

    @abc.abstractmethod
    async def _ask(self, commands: Sequence[Command]) -> Sequence[Any]:
        """Replies to reading commands in one round trip; Conflict when the attempt cannot go on."""

    async def _fetch(self, keys: Sequence[Key[Any]]) -> Sequence[Any]:
        reading_of = self._layout.reading
        readings = [reading_of[key.kind](key) for key in keys]
        commands = [command for reading in readings for command in reading]
        replies = await self._ask(commands)
        self.batches += 1
        self.seen.update(zip(commands, replies, strict=True))
        records = []
        at = 0
        for key, reading in zip(keys, readings, strict=True):
            records.append(DECODING[key.kind](key, replies[at : at + len(reading)]))
            at += len(reading)
        return records

    async def _ask_one(self, command: Command) -> Any:
        (reply,) = await self._ask([command])
        self.batches += 1
        self.seen[command] = reply
        return reply

    async def _fetch_count(self, ino: int, limit: int) -> int:
        count: int = await self._ask_one((b"HLEN", self._layout.directory(ino)))
        return min(count, limit)

    async def _fetch_xattr_names(self, ino: int) -> list[bytes]:
        names: list[bytes] = await self._ask_one((b"HKEYS", self._layout.xattrs(ino)))
        return names

    async def _fetch_parents(self, ino: int) -> dict[int, int]:
        flat: list[bytes] = await self._ask_one((b"HGETALL", self._layout.parents(ino)))
        counts = {int(parent): int(count) for parent, count in zip(flat[::2], flat[1::2], strict=True)}
        return {parent: count for parent, count in counts.items() if count > 0}

    @property
    def is_torn(self) -> bool:
        """Whether the reads were made by more than one command, so that others may have written in between."""
        return len(self.seen) > 1

    def commands(self) -> list[Command]:
        """The writes. Removals come last where nothing depends on them: a server that is out of memory refuses additions
        only, and a script stops at the first refusal."""
        layout = self._layout
        first: list[Command] = []
        last: list[Command] = []
        for ino in self.cleared_xattrs:
            refilled = any(isinstance(key, XattrKey) and key.ino == ino for key in self.writes)
            (first if refilled else last).append((b"DEL", layout.xattrs(ino)))
        for ino in self.cleared_parents:
            refilled = any(isinstance(key, ParentKey) and key.ino == ino for key in self.writes)
            (first if refilled else last).append((b"DEL", layout.parents(ino)))
        for key, record in self.writes.items():
            kind = key.kind
            if record is None:
                last += layout.deleting[kind](key)
                if kind in REMEMBERED:
                    self.stored[key] = as_read(kind, ())
            else:
                made = layout.putting[kind](key, record)
                first += made
                if kind in REMEMBERED:
                    self.stored[key] = as_read(kind, made)
        first += [layout.adding(number, delta) for number, delta in self.adds.items()]
        for usage, change in self.stats.items():
            first += layout.adding_stat(usage, change)
        for quota, more in self.quotas.items():
            first += layout.quotas.adding(quota, more)
        for chunk, appended in self.appends.items():
            first += [layout.appending(chunk, packed, existing_only) for packed, existing_only in appended]
        if self.journal and self.log is not None:
            if _ACL_IDS in self.writes:  # where the real client takes ids from a counter, it logs that
                self.journal.insert(0, LogEntry(incremented(_ACL_IDS.name, 1)))
            first += layout.logging(self.log.lines(self.journal))
        return first + last


class WatchTx(RedisTx):
    """An attempt on a private connection that WATCHes what it reads."""

    __slots__ = ("_address", "_connection", "_watched")

    def __init__(self, connection: Connection, layout: Layout, address: str) -> None:
        super().__init__(layout)
        self._connection = connection
        self._address = address
        self._watched: set[Any] = set()

    async def _ask(self, commands: Sequence[Command]) -> Sequence[Any]:
        fresh = {command[1] for command in commands} - self._watched
        self._watched |= fresh
        watch: list[Command] = [(b"WATCH", *fresh)] if fresh else []
        self._connection.watching = True
        replies = await self._roundtrip([*watch, *commands])
        if failure := first_error(replies):
            self._raise(failure)
        return replies[len(watch) :]

    async def _roundtrip(self, commands: Sequence[Command]) -> list[Any]:
        try:
            return await self._connection.request(pack_all(commands), len(commands))
        except ConnectionLost as error:
            raise Conflict from error  # nothing was written yet

    def _raise(self, failure: ServerError) -> None:
        if failure.passing:
            raise Conflict from converted(failure, self._address)
        raise converted(failure, self._address) from failure

    async def check(self) -> None:
        """Conflict unless everything read still holds. Ends the watching."""
        if self._watched:
            replies = await self._roundtrip([(b"MULTI",), (b"EXEC",)])
            if failure := first_error(replies):
                self._raise(failure)
            self._connection.watching = False
            if replies[-1] is None:
                raise Conflict

    async def unwatch(self) -> None:
        """End the watching; nothing was decided on what was read."""
        if self._connection.watching and not self._connection.lost:
            await self._roundtrip([(b"UNWATCH",)])
            self._connection.watching = False

    async def commit(self, commands: Sequence[Command]) -> None:
        """MULTI … EXEC. ConnectionLost when the connection breaks before the answer: see `outcome`."""
        packet = pack_all([(b"MULTI",), *commands, (b"EXEC",)])
        try:
            replies = await self._connection.request(packet, len(commands) + 2)
        except ConnectionLost as error:
            if error.sent:
                raise
            raise Conflict from error
        self._connection.watching = False
        if failure := first_error(replies):  # refused when it was queued, so nothing was done
            self._raise(failure)
        results = replies[-1]
        if results is None:
            raise Conflict
        if failure := first_error(results):
            raise converted(failure, self._address) from failure


def plain_commands(
    commands: Sequence[Command], layout: Layout, known: set[DirStatKey], quotas: set[QuotaKey]
) -> list[Command]:
    """*commands* with the conditional additions made plain where the directory's usage is in *known* or its quota in *quotas*, else left
    out."""
    plain: list[Command] = []
    for command in commands:
        if command[0] == ADD_TO_EXISTING:
            ino = command[2]
            if (
                DirStatKey(int(ino)) in known
                if command[1] == layout.dir_inodes
                else QuotaKey(DIRECTORY, int(ino)) in quotas
            ):
                plain += [(b"HINCRBY", name, ino, delta) for name, delta in added(command)]
        else:
            plain.append(command)
    return plain
