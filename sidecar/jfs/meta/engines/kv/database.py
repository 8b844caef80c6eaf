"""What a key-value database offers to the store: attempts, and reads outside of one.

An `Attempt` sees the database through its own eyes: what it has read it remembers in whatever form lets the commit find out whether
it still holds. Everything read by an attempt that commits is checked, not only what it writes over, since JuiceFS's operations
decide on records they do not change (the directory of a new file). Keys come without the volume's prefix. One event loop.
"""

import abc
from collections.abc import AsyncIterator, Mapping, Sequence

Pair = tuple[bytes, bytes]

PAGE = 2048  # pairs of one step of a long scan


class Attempt(abc.ABC):
    """One attempt of a transaction."""

    @property
    @abc.abstractmethod
    def needs_check(self) -> bool:
        """Whether what was read may never have been true at one moment."""

    @abc.abstractmethod
    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys, in one round trip."""

    @abc.abstractmethod
    async def scan(self, start: bytes, end: bytes, limit: int = 0, *, values: bool = True) -> list[Pair]:
        """Pairs from *start* up to *end* (excluded), at most *limit* when it is not 0; empty values without *values*."""

    @abc.abstractmethod
    async def commit(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Store the changes, None for a removal, all or none. Conflict when something read has changed."""

    @abc.abstractmethod
    async def log_ids(self, count: int) -> list[int]:
        """Ids for entries of the change log, in the order of time; none where the real client keeps no log either."""

    @abc.abstractmethod
    async def check(self) -> None:
        """Conflict unless everything read holds at one moment."""

    @abc.abstractmethod
    async def drop(self) -> None:
        """Give the attempt up. Idempotent; also called after a commit."""


class Database(abc.ABC):
    """The volume's part of a database."""

    name: str  # of the engine, as in its URL

    @abc.abstractmethod
    async def open(self) -> None:
        """Try to reach it. StoreUnavailable, CredentialsRefused."""

    @abc.abstractmethod
    def attempt(self, *, fresh: bool) -> Attempt:
        """Begin an attempt; unless it has to be *fresh* it may read what this process remembers."""

    @abc.abstractmethod
    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values outside of an attempt."""

    @abc.abstractmethod
    async def page(self, start: bytes, end: bytes, limit: int, *, values: bool = True) -> list[Pair]:
        """Pairs outside of an attempt, at most *limit*."""

    @abc.abstractmethod
    async def remove_all(self) -> None:
        """Remove every key of the volume."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Close connections. Idempotent."""

    async def scan(self, start: bytes, end: bytes, *, values: bool = True) -> AsyncIterator[Pair]:
        """All pairs of a range, page by page; what changes meanwhile may or may not be seen."""
        while True:
            page = await self.page(start, end, PAGE, values=values)
            for pair in page:
                yield pair
            if len(page) < PAGE:
                return
            start = page[-1][0] + b"\0"
