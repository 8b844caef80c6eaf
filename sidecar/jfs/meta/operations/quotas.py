"""Quotas in a transaction: who is charged for a change, and whether there is room for it (format §3.8, §5.3 quota).

`Quotas` is what a mount knows of the volume's quotas: limits and usage as last loaded, plus its own changes since, and which quotas
lie above a directory. `Ledger` is one operation's part: it adds to the usage records in the same transaction as the change they
count, so that usage is exact, and keeps what a commit adds to `Quotas` (`settle`). Limits are judged by what is known here; where that
comes near a limit the record is read in the transaction, so that several clients do not pass it together.
Pure but for that memory. One event loop.
"""

import errno
from collections.abc import Iterable, Mapping
from typing import Final

from jfs.errors import FsError
from jfs.format.constants import ROOT, TRASH
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import NodeKey
from jfs.meta.model.quota import DIRECTORY, GROUP, USER, Quota, QuotaChange, QuotaKey
from jfs.meta.store.base import Tx

_CHAINS: Final = 50_000  # directories whose quotas are remembered
_NEAR_SPACE: Final = 64 << 20
_NEAR_INODES: Final = 64
_NOTHING: Final = QuotaChange(0, 0)


class Quotas:
    """See the module. *owners*: whether usage of users and groups is kept."""

    def __init__(self, known: Mapping[QuotaKey, Quota], *, owners: bool) -> None:
        self.known = dict(known)
        self.owners = owners
        self.has_directories = any(key.what == DIRECTORY for key in known)
        self.generation = 0
        self._chains: dict[int, tuple[QuotaKey, ...]] = {}

    def forget_chains(self) -> None:
        """A directory went elsewhere."""
        self._chains.clear()
        self.generation += 1

    def chain(self, directory: int) -> tuple[QuotaKey, ...] | None:
        """The quotas above *directory* when they are known."""
        return self._chains.get(directory) if self.has_directories else ()

    def learn_chains(self, chains: Mapping[int, tuple[QuotaKey, ...]]) -> None:
        """What a committed transaction has found."""
        if len(self._chains) >= _CHAINS:
            self._chains.clear()
        self._chains.update(chains)

    def add(self, key: QuotaKey, change: QuotaChange) -> None:
        """Own commits changed a usage."""
        quota = self.known.get(key)
        if quota is None:
            if key.what == DIRECTORY:
                return
            quota = Quota()
        self.known[key] = quota.added(*change)


class Ledger:
    """What one operation charges. An attempt of its transaction that is run again begins with nothing."""

    def __init__(self, quotas: Quotas) -> None:
        self.quotas = quotas
        self._tx: Tx | None = None
        self._changes: dict[QuotaKey, QuotaChange] = {}
        self._chains: dict[int, tuple[QuotaKey, ...]] = {}
        self._generation = quotas.generation

    def settle(self) -> None:
        """The transaction was committed."""
        for key, change in self._changes.items():
            self.quotas.add(key, change)
        if self._generation == self.quotas.generation:
            self.quotas.learn_chains(self._chains)
        self._tx = None

    def _enter(self, tx: Tx) -> None:
        if tx is not self._tx:
            self._tx = tx
            self._changes.clear()
            self._chains.clear()
            self._generation = self.quotas.generation

    async def above(self, tx: Tx, directory: int) -> tuple[QuotaKey, ...]:
        """The quotas that count what is put into *directory*, nearest first: its own and those of its ancestors."""
        chain = self.quotas.chain(directory)
        if chain is not None:
            return chain
        self._enter(tx)
        chain = self._chains.get(directory)
        if chain is None:
            chain = self._chains[directory] = await self._walk(tx, directory)
        return chain

    async def _walk(self, tx: Tx, directory: int) -> tuple[QuotaKey, ...]:
        found = []
        seen: set[int] = set()
        at = directory
        while 0 < at < TRASH and at not in seen:
            seen.add(at)
            key = QuotaKey(DIRECTORY, at)
            if key in self.quotas.known:
                found.append(key)
            if at == ROOT:
                break
            (node,) = await tx.get(NodeKey(at))
            at = node.parent if node is not None else 0
        return tuple(found)

    def _charge(self, tx: Tx, key: QuotaKey, space: int, inodes: int) -> None:
        self._enter(tx)
        tx.add_quota(key, space, inodes)
        self._changes[key] = self._changes.get(key, _NOTHING).plus(space, inodes)

    async def charge(self, tx: Tx, directory: int, space: int, inodes: int) -> None:
        """Something below *directory* came, went or changed."""
        for key in await self.above(tx, directory):
            self._charge(tx, key, space, inodes)

    def charge_owner(self, tx: Tx, attr: Attr, space: int, inodes: int) -> None:
        """An inode of the owner of *attr* came, went or changed. The trash's hour directories are nobody's."""
        if self.quotas.owners and attr.parent != TRASH:
            self._charge(tx, QuotaKey(USER, attr.uid), space, inodes)
            self._charge(tx, QuotaKey(GROUP, attr.gid), space, inodes)

    def change_owner(self, tx: Tx, before: Attr, after: Attr, space: int) -> None:
        """An inode of *space* bytes got another owner or group."""
        if self.quotas.owners:
            for what, old, new in ((USER, before.uid, after.uid), (GROUP, before.gid, after.gid)):
                if old != new:
                    self._charge(tx, QuotaKey(what, old), -space, -1)
                    self._charge(tx, QuotaKey(what, new), space, 1)

    def drop_directory(self, tx: Tx, ino: int) -> None:
        """A directory is removed, and its quota with it."""
        key = QuotaKey(DIRECTORY, ino)
        if key in self.quotas.known:
            tx.delete(key)

    async def check_owner(self, tx: Tx, uid: int, gid: int, space: int, inodes: int) -> None:
        """FsError(EDQUOT) when the user or the group may not own so much more."""
        if self.quotas.owners:
            await self._check(tx, (QuotaKey(USER, uid), QuotaKey(GROUP, gid)), space, inodes)

    async def check(self, tx: Tx, directory: int, space: int, inodes: int, *, except_above: int = 0) -> None:
        """FsError(EDQUOT) when *directory* may not hold so much more; quotas that also count directory *except_above* are not asked."""
        keys: Iterable[QuotaKey] = await self.above(tx, directory)
        if except_above:
            others = await self.above(tx, except_above)
            keys = [key for key in keys if key not in others]
        await self._check(tx, keys, space, inodes)

    async def _check(self, tx: Tx, keys: Iterable[QuotaKey], space: int, inodes: int) -> None:
        if space <= 0 and inodes <= 0:
            return
        for key in keys:
            quota = self.quotas.known.get(key)
            if quota is None or not quota.is_limited:
                continue
            if _is_near(quota, space, inodes):
                (quota,) = await tx.get(key)
                if quota is None:
                    continue
            if quota.refuses(space, inodes):
                raise FsError(errno.EDQUOT)


def _is_near(quota: Quota, space: int, inodes: int) -> bool:
    """Whether so little room is left that others may have used it up since it was looked at."""
    return (0 < quota.max_space < quota.used_space + space + max(quota.max_space // 10, _NEAR_SPACE)) or (
        0 < quota.max_inodes < quota.used_inodes + inodes + max(quota.max_inodes // 10, _NEAR_INODES)
    )
