"""Reads while a volume's slot is on its way to another node of its Cluster: single keys that have gone ahead (ASK) are asked for there.

What needs several keys at once, all changes among it, waits until the slot has arrived: it would be refused (TRYAGAIN) as long as some
keys are here and some there. Nothing here changes anything. Belongs to one link and its event loop.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from jfs.errors import StoreUnavailable
from jfs.meta.engines.redis.cluster import Place, redirection
from jfs.meta.engines.redis.connection import Command, Connection, pack_all
from jfs.meta.engines.redis.dialling import reach
from jfs.meta.engines.redis.failures import ServerError, first_error
from jfs.meta.engines.redis.url import RedisAddress

_WITHIN: Final = 5.0  # seconds for a connection


class Beyond:
    """The node that the slot is being moved to."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._connection: Connection | None = None
        self._dialling = asyncio.Lock()

    async def complete(self, commands: Sequence[Command], replies: Sequence[Any], asked: str) -> list[Any] | None:
        """*replies* of host *asked* to reading *commands*, with what has gone ahead; None when that does not make them complete."""
        if commands[0][0] == b"MULTI":
            return None
        missing = [at for at, reply in enumerate(replies) if isinstance(reply, ServerError)]
        if any(not replies[at].asking or _goes_on(commands[at]) for at in missing):
            return None
        packet = pack_all([word for at in missing for word in ((b"ASKING",), commands[at])])
        try:
            connection = await self._reached(redirection(replies[missing[0]].text, asked))
            answers = (await connection.request(packet, 2 * len(missing)))[1::2]
        except (OSError, TimeoutError, StoreUnavailable):
            return None
        if first_error(answers):
            return None
        found = dict(zip(missing, answers, strict=True))
        return [found.get(at, reply) for at, reply in enumerate(replies)]

    async def _reached(self, place: Place) -> Connection:
        async with self._dialling:
            known = self._connection
            if known is not None and not known.lost and known.place == place:
                return known
            await self.close()
            async with asyncio.timeout(_WITHIN):
                connection = self._connection = await reach(self._address, *place)
                if greeting := self._address.authentication():
                    await connection.request(pack_all(greeting), len(greeting))
            return connection

    async def close(self) -> None:
        """Leave that node. Idempotent."""
        known, self._connection = self._connection, None
        if known is not None:
            await known.close()


def _goes_on(command: Command) -> bool:
    """Whether it asks for the next page of a hash, by a cursor that means something to one server only."""
    return command[0] == b"HSCAN" and command[2] != b"0"
