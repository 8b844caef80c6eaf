"""Transactions in one round trip: a server-side script checks what the attempt read and applies what it writes.

The script knows nothing of volumes: it runs each reading command again, compares the reply with the one the attempt used,
and only when all agree runs the writing commands. Comparing values is as good as comparing versions, since an attempt's
result depends on nothing else. As a wrong read only costs another attempt, reads may come from `RecordCache`, the last raw
values this process saw: a busy directory's attributes and a name that was just found missing need no round trip.

Invariants: no result and no error leaves an attempt unless the script agreed to its reads (or they were one fresh command);
an attempt that is run again reads everything afresh; what was sent to commit is never sent twice.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from jfs.errors import Conflict
from jfs.meta.engines.redis.connection import Command, pack, pack_all
from jfs.meta.engines.redis.failures import ConnectionLost, ServerError, converted
from jfs.meta.engines.redis.layout import ADD_TO_EXISTING, DECODING, REMEMBERED, Layout
from jfs.meta.engines.redis.link import Link
from jfs.meta.engines.redis.outcome import was_made
from jfs.meta.engines.redis.remembered import RecordCache
from jfs.meta.engines.redis.transaction import RedisTx
from jfs.meta.model.attr import Attr, Entry, unpack_attr, unpack_entry
from jfs.meta.model.keys import EdgeKey, Key, NodeKey
from jfs.meta.store.base import Tx
from jfs.meta.store.change_log import ChangeLog
from jfs.meta.store.remembered import UNKNOWN

log = logging.getLogger(__name__)

T = TypeVar("T")

# ARGV: number of checks; for each: number of words (negative when no string is expected), the words, the expected reply in
# `expected`'s form; then for each write: number of words, the words. The answer is 0, or the position of the first check that failed.
_COMMIT: Final = """
local a, i, call = ARGV, 2, redis.call
for n = 1, tonumber(a[1]) do
  local words = tonumber(a[i])
  local last = i + math.abs(words)
  local reply = call(unpack(a, i + 1, last))
  if words < 0 then
    local kind = type(reply)
    if kind == 'boolean' then reply = '-'
    elseif kind == 'number' then reply = ':' .. string.format('%.0f', reply)
    elseif kind == 'table' then reply = '*' .. table.concat(reply, '\\0')
    else return n end
  end
  if reply ~= a[last + 1] then return n end
  i = last + 2
end
local total = #a
while i <= total do
  local last = i + tonumber(a[i])
  if a[i + 1] == '?HINCRBY' then
    if call('HEXISTS', a[i + 2], a[i + 3]) == 1 then
      for at = i + 4, last, 2 do call('HINCRBY', a[at], a[i + 3], a[at + 1]) end
    end
  else
    call(unpack(a, i + 1, last))
  end
  i = last + 1
end
return 0
"""

# An entry and the attributes it leads to, in keys that begin with PREFIX. Lua's numbers are exact up to 2^53 only; beyond, the
# caller asks for them itself.
_LOOKUP: Final = """
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry then return false end
local high, low = struct.unpack('>I4I4', string.sub(entry, 2, 9))
if high >= 2097152 then return {entry} end
return {entry, redis.call('GET', 'PREFIXi' .. string.format('%.0f', high * 4294967296 + low))}
"""

_SHEBANG: Final = "#!lua\n"  # from version 7 on: refused as a whole when the server is out of memory or a replica


def expected(reply: Any) -> bytes:
    """A reply in the form the script compares."""
    if reply is None:
        return b"-"
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, int):
        return b":%d" % reply
    return b"*" + b"\0".join(reply)


class ScriptTx(RedisTx):
    """An attempt whose reads are checked at commit."""

    __slots__ = ("_cache", "_link", "_trust", "afterwards", "came", "guessed")

    def __init__(self, link: Link, layout: Layout, cache: RecordCache, trust: bool) -> None:
        super().__init__(layout)
        self._link = link
        self._cache = cache
        self._trust = trust  # whether the cache may answer
        self.guessed = False  # whether it has
        self.afterwards: Sequence[Command] = ()  # what is to be read once the commit is made, in its round trip …
        self.came: Sequence[Any] | None = None  # … and the replies, error replies among them

    async def _ask(self, commands: Sequence[Command]) -> Sequence[Any]:
        return await self._link.read(commands)

    async def _fetch(self, keys: Sequence[Key[Any]]) -> Sequence[Any]:
        cache = self._cache
        if not self._trust:
            return await self._fetch_fresh(keys)
        raws = [cache.get(key) if key.kind in REMEMBERED else UNKNOWN for key in keys]
        fresh: Iterator[Any] = iter(())
        if UNKNOWN in raws:
            fresh = iter(await self._fetch_fresh([key for key, raw in zip(keys, raws, strict=True) if raw is UNKNOWN]))
        records: list[Any] = []
        for key, raw in zip(keys, raws, strict=True):
            if raw is UNKNOWN:
                records.append(next(fresh))
            else:
                self.guessed = True
                self.seen[self._layout.reading[key.kind](key)[0]] = raw
                records.append(DECODING[key.kind](key, (raw,)))
        return records

    async def _fetch_fresh(self, keys: Sequence[Key[Any]]) -> Sequence[Any]:
        records = await super()._fetch(keys)
        for key in keys:
            if key.kind in REMEMBERED:
                self._cache.put(key, self.seen[self._layout.reading[key.kind](key)[0]])
        return records

    async def _fetch_count(self, ino: int, limit: int) -> int:
        """As a guess 0: who asks hopes that the directory is empty."""
        if not self._trust:
            return await super()._fetch_count(ino, limit)
        self.guessed = True
        self.seen[(b"HLEN", self._layout.directory(ino))] = 0
        return 0

    @property
    def needs_check(self) -> bool:
        """Whether what was read may never have been true at one moment."""
        return self.guessed or self.is_torn

    def forget_guesses(self) -> None:
        """Drop from the cache what the attempt has read."""
        for key in self.reads:
            if key.kind in REMEMBERED:
                self._cache.drop(key)

    def remember_writes(self) -> None:
        """Put into the cache what the commit has stored."""
        cache = self._cache
        for key, raw in self.stored.items():
            if raw is None and key.kind == "node":
                cache.drop(key)  # an inode never comes back
            else:
                cache.put(key, raw)


class Scripts:
    """The loaded scripts of one server, and attempts that commit by them."""

    def __init__(self, link: Link, layout: Layout, address: str, major: int) -> None:
        self._link = link
        self._layout = layout
        self._address = address
        lookup = _LOOKUP.replace("PREFIX", layout.prefix.decode())
        shebang = _SHEBANG if major >= 7 else ""
        self._sources = [(shebang + source).encode() for source in (_COMMIT, lookup)]
        self._commit, self._lookup = (hashlib.sha1(source).hexdigest().encode() for source in self._sources)
        self.cache = RecordCache()
        self.usable = True

    async def load(self) -> None:
        """Load the scripts; when that is not permitted they are not used any more."""
        replies = await self._link.ask([(b"SCRIPT", b"LOAD", source) for source in self._sources])
        if replies != [self._commit, self._lookup]:
            self._give_up(next((str(reply) for reply in replies if isinstance(reply, ServerError)), "other digests"))

    def _give_up(self, reason: str) -> None:
        if self.usable:
            self.usable = False
            log.warning(
                "Redis at %s does not let us use scripts (%s): transactions take two round trips", self._address, reason
            )

    async def attempt(self, operation: Callable[[Tx], Awaitable[T]], number: int, log: ChangeLog | None) -> T:
        """One attempt of `Store.run`; the first may rest on remembered values."""
        tx = ScriptTx(self._link, self._layout, self.cache, trust=number == 0)
        tx.keep_journal(log)
        try:
            result = await operation(tx)
        except Conflict:
            raise
        except Exception:
            if tx.needs_check:
                await self._apply(tx, [])
            raise
        if tx.changes_anything():
            await self._apply(tx, tx.commands())
            tx.remember_writes()
        elif tx.guessed or tx.batches > 1:
            await self._apply(tx, [])
        return result

    async def _apply(self, tx: ScriptTx, writes: Sequence[Command]) -> None:
        arguments: list[bytes | str | int] = [len(tx.seen)]
        names: dict[Any, None] = {}
        for command, reply in tx.seen.items():
            names[command[1]] = None
            arguments.append(len(command) if isinstance(reply, bytes) else -len(command))
            arguments += command
            arguments.append(expected(reply))
        for command in writes:
            if command[0] == ADD_TO_EXISTING:
                names.update(dict.fromkeys((command[1], *command[3::2])))
            else:
                names[command[1]] = None
            arguments.append(len(command))
            arguments += command
        packet = pack((b"EVALSHA", self._commit, len(names), *names, *arguments))
        if tx.afterwards:
            packet += pack_all(tx.afterwards)
        connection = self._link.shared_now() or await self._link.shared()
        try:
            answer, *later = await connection.request(packet, 1 + len(tx.afterwards))
        except ConnectionLost as error:
            if error.sent and writes and await was_made(self._link, self._layout, tx, connection):
                return
            raise Conflict from error
        if answer == 0:
            tx.came = later or None
            return
        tx.forget_guesses()
        if isinstance(answer, ServerError):
            await self._refused(answer)
            raise Conflict from converted(answer, self._address)
        raise Conflict

    async def _refused(self, error: ServerError) -> None:
        """Nothing was done; return when another attempt makes sense."""
        if error.text.startswith("NOSCRIPT"):
            await self.load()
        elif error.forbidden and "script:" not in error.text:
            self._give_up(error.text)
        elif not error.passing:
            raise converted(error, self._address) from error

    async def lookup(self, parent: int, name: bytes) -> tuple[Entry, Attr | None] | None:
        """See `jfs.meta.store.base.Store.lookup`; what is found may serve the next transaction."""
        command: Command = (b"EVALSHA", self._lookup, 1, self._layout.directory(parent), name)
        connection = self._link.shared_now() or await self._link.shared()
        try:
            (answer,) = await connection.request(pack(command), 1)
        except ConnectionLost:
            return await lookup_plainly(self._link, self._layout, self.cache, parent, name)
        if isinstance(answer, ServerError):
            if answer.text.startswith("NOSCRIPT"):
                await self.load()
            elif answer.forbidden:
                self._give_up(answer.text)
            return await lookup_plainly(self._link, self._layout, self.cache, parent, name)
        if answer is None:
            self.cache.put(EdgeKey(parent, name), None)
            return None
        entry = unpack_entry(answer[0])
        self.cache.put(EdgeKey(parent, name), answer[0])
        if len(answer) == 1:
            return await lookup_plainly(self._link, self._layout, self.cache, parent, name)
        return entry, _remembered(self.cache, entry.ino, answer[1])


def _remembered(cache: RecordCache, ino: int, raw: bytes | None) -> Attr | None:
    if raw is None:
        return None
    cache.put(NodeKey(ino), raw)
    return unpack_attr(raw)


async def lookup_plainly(
    link: Link, layout: Layout, cache: RecordCache, parent: int, name: bytes
) -> tuple[Entry, Attr | None] | None:
    """A lookup in two round trips."""
    (raw,) = await link.read([(b"HGET", layout.directory(parent), name)])
    cache.put(EdgeKey(parent, name), raw)
    if raw is None:
        return None
    entry = unpack_entry(raw)
    (attr,) = await link.read([(b"GET", layout.node(entry.ino))])
    return entry, _remembered(cache, entry.ino, attr)
