"""etcd: an attempt remembers the revision of everything it has read, and commits by one etcd transaction that compares them.

Reads come from the leader (linearizable); values of inodes and entries may come from what this process saw last, since a wrong
one only costs another attempt. A range that was read as a whole is compared as a whole, so that a name which appears in it is
noticed. A transaction is never split: one with more than etcd's 128 operations is refused. One event loop.
"""

import asyncio
import errno
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from jfs.errors import Conflict, CredentialsRefused, FsError, JfsError, StoreAway, StoreUnavailable
from jfs.meta.engines.kv import statuses
from jfs.meta.engines.kv.calls import Servers
from jfs.meta.engines.kv.database import Attempt, Database, Pair
from jfs.meta.engines.kv.etcd_outcome import Compacted, Found, was_made
from jfs.meta.engines.kv.layout import SETTING
from jfs.meta.engines.kv.proto import etcd_pb2 as pb
from jfs.meta.engines.kv.url import KvAddress
from jfs.meta.store.remembered import UNKNOWN, Remembered, Unknown

log = logging.getLogger(__name__)

OPERATIONS: Final = 128  # etcd's --max-txn-ops, for comparisons and for changes
_PATIENCE: Final = 10.0  # seconds that a server which does not answer is asked again
_LOST: Final = (statuses.CANCELLED, statuses.DEADLINE_EXCEEDED, statuses.INTERNAL, statuses.UNAVAILABLE)


class _Lost(Exception):
    """No answer; when it was *sent* the request may have been carried out."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class Unanswered(StoreUnavailable):
    """No answer to a change came; *since* is the newest revision known when it was sent."""

    def __init__(self, message: str, since: int) -> None:
        super().__init__(message)
        self.since = since


class EtcdDatabase(Database):
    """A volume's keys in etcd."""

    name = "etcd"

    def __init__(self, address: KvAddress) -> None:
        self.where = f"etcd at {', '.join(address.servers)}"
        self._address = address
        self._prefix = address.prefix
        self._servers = Servers(address)
        self._server = 0  # which of them is asked
        self._token: str | None = None
        self._remembered: Remembered[bytes, Found] = Remembered()
        self._revision = 0  # the newest one that an answer told

    async def open(self) -> None:
        """Try to read. StoreUnavailable, CredentialsRefused."""
        await self.page(b"", b"\xff", 1, values=False)

    # Requests.

    async def _ask(self, service: str, method: str, request: Any, answer: Any) -> Any:
        """One request. _Lost, or what the server's refusal means."""
        if self._token is None and self._address.user and method != "Authenticate":
            await self._log_in()
        path = f"/etcdserverpb.{service}/{method}"
        turn = self._server
        server = self._address.servers[turn % len(self._address.servers)]
        try:
            reply = await self._servers.ask(server, path, request, answer, self._token or "")
        except (statuses.Broken, statuses.Status) as error:
            meaning = self._meaning(error)
            if isinstance(meaning, _Lost) and self._server == turn:
                self._server += 1
            raise meaning from error
        self._revision = max(self._revision, reply.header.revision)
        return reply

    def _meaning(self, error: statuses.Broken | statuses.Status) -> Exception:
        text = str(error)
        if isinstance(error, statuses.Broken):
            return _Lost(text, sent=error.sent)
        code = error.code
        if "invalid auth token" in text:
            self._token = None
            return Conflict()
        if "auth" in text or "user name is empty" in text or code == statuses.PERMISSION_DENIED:
            return CredentialsRefused(
                f"{self.where} refused the user or the password; check the metadata address and META_PASSWORD"
            )
        if "space exceeded" in text:
            return FsError(errno.ENOSPC)
        if "too many operations" in text or "too large" in text:
            return FsError(errno.E2BIG)
        if code == statuses.OUT_OF_RANGE and "compacted" in text:
            return Compacted("its history has been compacted")
        if "too many requests" in text:
            return Conflict()
        if code in _LOST:
            return _Lost(text, sent=True)
        return StoreUnavailable(f"{self.where} failed: {text} (status {code})")

    async def _log_in(self) -> None:
        request = pb.AuthenticateRequest(name=self._address.user, password=self._address.password)
        answer = await self._ask("Auth", "Authenticate", request, pb.AuthenticateResponse)
        self._token = answer.token

    async def _read(self, method: str, request: Any, answer: Any) -> Any:
        """A request that changes nothing: asked again, of the next server, while nobody answers."""
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        pause = 0.05
        while True:
            try:
                return await self._ask("KV", method, request, answer)
            except Conflict:
                pass
            except _Lost as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise StoreAway(
                        f"{self.where} cannot be reached ({error}); check the address and that the server runs"
                    ) from error
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, 1.0)

    async def find(self, keys: Sequence[bytes]) -> list[Found]:
        """Values with revisions."""
        if len(keys) == 1:
            answers = [await self._read("Range", pb.RangeRequest(key=self._prefix + keys[0]), pb.RangeResponse)]
        else:
            groups = [keys[at : at + OPERATIONS] for at in range(0, len(keys), OPERATIONS)]
            transactions = await asyncio.gather(
                *(self._read("Txn", self._reading(group), pb.TxnResponse) for group in groups)
            )
            answers = [one.response_range for transaction in transactions for one in transaction.responses]
        found = []
        for key, answer in zip(keys, answers, strict=True):
            one = _found(answer)
            self.remember(key, one)
            found.append(one)
        return found

    def _reading(self, keys: Sequence[bytes]) -> Any:
        return pb.TxnRequest(
            success=[pb.RequestOp(request_range=pb.RangeRequest(key=self._prefix + key)) for key in keys]
        )

    async def find_range(
        self, start: bytes, end: bytes, limit: int, values: bool
    ) -> tuple[list[tuple[bytes, bytes, int]], bool, int]:
        """(key, value, revision) of a range, whether there are more, and the revision of the database."""
        request = pb.RangeRequest(
            key=self._prefix + start, range_end=self._prefix + end, limit=limit, keys_only=not values
        )
        answer = await self._read("Range", request, pb.RangeResponse)
        cut = len(self._prefix)
        return [(one.key[cut:], one.value, one.mod_revision) for one in answer.kvs], answer.more, answer.header.revision

    async def change(self, request: Any) -> Any:
        """An etcd transaction that stores. Conflict when it never was carried out, Unanswered when that is not known."""
        since = self._revision
        try:
            return await self._ask("KV", "Txn", request, pb.TxnResponse)
        except _Lost as error:
            if not error.sent:
                raise Conflict from error
            raise Unanswered(f"{self.where} did not answer ({error})", since) from error

    async def repeat(self, request: Any) -> Any:
        """An etcd transaction that may be done twice."""
        return await self._read("Txn", request, pb.TxnResponse)

    # What became of a change that was not answered: see `etcd_outcome`.

    async def at(self, looks: list[tuple[bytes, int]]) -> list[Found]:
        """Keys as they were at revisions, at most 128. Compacted."""
        ranges = [pb.RangeRequest(key=self._prefix + key, revision=revision) for key, revision in looks]
        request = pb.TxnRequest(success=[pb.RequestOp(request_range=one) for one in ranges])
        answer = await self.repeat(request)
        return [_found(one.response_range) for one in answer.responses]

    async def touch(self, key: bytes, revision: int) -> tuple[bool, int]:
        """Store a key that has *revision* again as it is; whether it had, and the database's revision afterwards."""
        (present,) = await self.find([key])
        if present.value is None or present.revision != revision:
            return False, self._revision
        request = pb.TxnRequest(compare=[self.comparison(key, revision)], success=[self.change_of(key, present.value)])
        answer = await self.repeat(request)
        self.forget(key)
        return answer.succeeded, answer.header.revision

    def comparison(self, key: bytes, revision: int) -> Any:
        """That a key has this revision."""
        return pb.Compare(key=self._prefix + key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=revision)

    def range_comparison(self, start: bytes, end: bytes, revision: int) -> Any:
        """That nothing in a range is newer than a revision."""
        return pb.Compare(
            key=self._prefix + start,
            range_end=self._prefix + end,
            target=pb.Compare.MOD,
            result=pb.Compare.LESS,
            mod_revision=revision + 1,
        )

    def change_of(self, key: bytes, value: bytes | None) -> Any:
        """The operation that stores a value or removes it."""
        if value is None:
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=self._prefix + key))
        return pb.RequestOp(request_put=pb.PutRequest(key=self._prefix + key, value=value))

    # What was seen last, of inodes and entries.

    def remembered(self, key: bytes) -> Found | Literal[Unknown.UNKNOWN]:
        """What this process saw last, or UNKNOWN."""
        return self._remembered.get(key)

    def remember(self, key: bytes, found: Found) -> None:
        if key == SETTING or (key[:1] == b"A" and key[9:10] in (b"I", b"D")):
            self._remembered.put(key, found)

    def forget(self, key: bytes) -> None:
        self._remembered.drop(key)

    # The interface.

    def attempt(self, *, fresh: bool) -> "EtcdAttempt":
        return EtcdAttempt(self, trust=not fresh)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [found.value for found in await self.find(keys)] if keys else []

    async def page(self, start: bytes, end: bytes, limit: int, *, values: bool = True) -> list[Pair]:
        found, _, _ = await self.find_range(start, end, limit, values)
        return [(key, value) for key, value, _ in found]

    async def remove_all(self) -> None:
        self._remembered.clear()
        request = pb.DeleteRangeRequest(key=self._prefix, range_end=self._prefix + b"\xff")
        try:
            await self._ask("KV", "DeleteRange", request, pb.DeleteRangeResponse)
        except _Lost as error:
            raise StoreUnavailable(f"{self.where} did not answer ({error}); run the command again") from error

    async def close(self) -> None:
        await self._servers.close()


class EtcdAttempt(Attempt):
    """What was read, with its revisions."""

    def __init__(self, database: EtcdDatabase, *, trust: bool) -> None:
        self._database = database
        self._trust = trust
        self._guessed = False
        self._batches = 0
        self._revisions: dict[bytes, int] = {}
        self._ranges: list[tuple[bytes, bytes, int]] = []

    @property
    def needs_check(self) -> bool:
        return self._guessed or self._batches > 1

    def _saw(self, key: bytes, revision: int) -> None:
        if self._revisions.setdefault(key, revision) != revision:
            self._forget()
            raise Conflict

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: dict[bytes, Found] = {}
        asked = []
        for key in keys:
            known = self._database.remembered(key) if self._trust else UNKNOWN
            if known is UNKNOWN:
                asked.append(key)
            else:
                self._guessed = True
                found[key] = known
        if asked:
            self._batches += 1
            found.update(zip(asked, await self._database.find(asked), strict=True))
        for key in keys:
            self._saw(key, found[key].revision)
        return [found[key].value for key in keys]

    async def scan(self, start: bytes, end: bytes, limit: int = 0, *, values: bool = True) -> list[Pair]:
        self._batches += 1
        found, more, revision = await self._database.find_range(start, end, limit, values)
        for key, _, changed in found:
            self._saw(key, changed)
        if not more:
            self._ranges.append((start, end, revision))
        return [(key, value) for key, value, _ in found]

    def _comparisons(self) -> list[Any]:
        database = self._database
        comparisons = [database.comparison(key, revision) for key, revision in self._revisions.items()]
        comparisons += [database.range_comparison(*one) for one in self._ranges]
        return comparisons

    async def _hold_fast(self) -> None:
        """Compare something that there is, the volume's setting if nothing else: `etcd_outcome` needs it."""
        if not any(self._revisions.values()):
            found = self._database.remembered(SETTING)
            if found is UNKNOWN:
                (found,) = await self._database.find([SETTING])
            self._revisions[SETTING] = found.revision

    async def commit(self, changes: Mapping[bytes, bytes | None]) -> None:
        database = self._database
        conditional = bool(self._revisions or self._ranges)
        if conditional:
            await self._hold_fast()
        comparisons = self._comparisons()
        if len(changes) > OPERATIONS or len(comparisons) > OPERATIONS:
            log.warning("a transaction of %d changes is larger than etcd's limit and was refused", len(changes))
            raise FsError(errno.E2BIG)
        request = pb.TxnRequest(
            compare=comparisons, success=[database.change_of(key, value) for key, value in changes.items()]
        )
        try:
            answer = await (database.change(request) if conditional else database.repeat(request))
        except JfsError as error:
            self._forget()
            for key in changes:
                database.forget(key)
            if not isinstance(error, Unanswered):
                raise
            if await was_made(database, self._revisions, changes, error.since, str(error)):
                return
            raise Conflict from error
        if not answer.succeeded:
            self._forget()
            raise Conflict
        for key, value in changes.items():
            database.remember(key, Found(value, 0 if value is None else answer.header.revision))

    async def log_ids(self, count: int) -> list[int]:
        return []  # on etcd the real client keeps no change log, whatever the setting says

    async def check(self) -> None:
        comparisons = self._comparisons()
        for start in range(0, len(comparisons), OPERATIONS):
            answer = await self._database.repeat(pb.TxnRequest(compare=comparisons[start : start + OPERATIONS]))
            if not answer.succeeded:
                self._forget()
                raise Conflict

    def _forget(self) -> None:
        for key in self._revisions:
            self._database.forget(key)

    async def drop(self) -> None:
        return


def _found(answer: Any) -> Found:
    """The value of a range that is one key."""
    return Found(answer.kvs[0].value, answer.kvs[0].mod_revision) if answer.kvs else Found(None, 0)
