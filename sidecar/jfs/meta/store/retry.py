"""The loop around an attempt: in-process locks, conflicts, pauses, the end of patience (format §5.1).

An engine implements one attempt; everything that is the same for all engines about running it again is here. Invariant: an
exception leaves `run` only when the engine says that the reads it rests on still hold; `Conflict` never leaves.
"""

import abc
import asyncio
import errno
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from jfs.errors import Conflict, FsError, StoreUnavailable
from jfs.meta.model.keys import Key
from jfs.meta.store.base import Tx
from jfs.meta.store.change_log import ChangeLog
from jfs.meta.store.locks import InodeLocks
from jfs.meta.store.tracking import TrackedTx
from jfs.metrics import DURATIONS, REGISTRY

A = TypeVar("A")
T = TypeVar("T")

MAX_ATTEMPTS: Final = 50


class TransactionRunner(abc.ABC):
    """What every engine's store inherits: `run` over the engine's `_attempt`."""

    missing_slice: int = TrackedTx.MISSING_SLICE
    locks_directories = True  # whether two attempts can conflict

    def __init__(self) -> None:
        self._locks = InodeLocks()
        self.restarts = 0  # attempts that had to be run again
        self.change_log: ChangeLog | None = None
        self.on_presence: Callable[[str], None] | None = None
        self._durations = REGISTRY.histogram(
            "transaction_durations_histogram_seconds",
            DURATIONS,
            "Seconds of metadata transactions with all their attempts.",
        )

    def presence(self) -> str:
        """See `jfs.meta.store.base.Store.presence`: not told by this engine."""
        return ""

    async def cut_off(self, presence: str) -> bool:
        """See `jfs.meta.store.base.Store.cut_off`: not known to this engine."""
        return not presence

    @abc.abstractmethod
    async def _attempt(self, operation: Callable[[Tx], Awaitable[T]], number: int) -> T:
        """Run *operation* once and commit. *number* counts from 0. Conflict asks for another attempt; any other exception is
        final, so the engine has found that the reads behind it still hold."""

    async def run(self, operation: Callable[[Tx], Awaitable[T]], *, near: Sequence[int] = (), directory: int = 0) -> T:
        """See `jfs.meta.store.base.Store.run`."""
        if directory and self.locks_directories:
            near = (*near, directory)
        if not near:
            return await self._run(operation)
        inodes = near if len(near) == 1 else sorted(set(near))
        await self._locks.acquire(inodes)
        try:
            return await self._run(operation)
        finally:
            self._locks.release(inodes)

    @abc.abstractmethod
    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        """See `jfs.meta.store.base.Store.get`."""

    async def run_then_get(
        self, operation: Callable[[Tx], Awaitable[T]], key: Key[A], *, near: Sequence[int] = ()
    ) -> tuple[T, A | None]:
        """See `jfs.meta.store.base.Store.run_then_get`."""
        result = await self.run(operation, near=near)
        (record,) = await self.get(key)
        return result, record

    async def _run(self, operation: Callable[[Tx], Awaitable[T]]) -> T:
        started = time.perf_counter()
        reason: BaseException | None = None
        for number in range(MAX_ATTEMPTS):
            try:
                result = await self._attempt(operation, number)
            except Conflict as conflict:
                reason = conflict.__cause__
                self._count_restart(operation)
            else:
                self._durations.observe(time.perf_counter() - started)
                return result
            await asyncio.sleep(random.random() * number * number / 1000)  # the first one is run again at once
        if isinstance(reason, StoreUnavailable):  # no conflict, but a server that takes no changes
            raise reason
        raise FsError(errno.EAGAIN)

    def _count_restart(self, operation: Callable[[Tx], Awaitable[T]]) -> None:
        self.restarts += 1
        method = getattr(operation, "__qualname__", "").partition(".<locals>")[0].rpartition(".")[2].strip("_")
        REGISTRY.counter("transaction_restart", "Transactions run again after a conflict.", method=method).value += 1
