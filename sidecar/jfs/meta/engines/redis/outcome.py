"""What Redis tells of a commit whose answer was lost (see `jfs.meta.store.outcome`).

The lost connection is ended by CLIENT KILL; a server that was started again has none. Nothing is written. Any number of tasks at once.
"""

from typing import Any

from jfs.errors import StoreAway
from jfs.meta.engines.redis.connection import Command, Connection, pack
from jfs.meta.engines.redis.failures import ConnectionLost, ServerError
from jfs.meta.engines.redis.layout import DECODING, Layout
from jfs.meta.engines.redis.link import Link
from jfs.meta.engines.redis.transaction import RedisTx
from jfs.meta.model.keys import Key
from jfs.meta.store import outcome


async def was_made(link: Link, layout: Layout, tx: RedisTx, lost: Connection) -> bool:
    """Whether the commit of *tx* that was sent over *lost* has been made. StoreUnavailable when that cannot be told."""
    return await outcome.was_made(tx, _Witness(link, layout, tx, lost), lost.lost)


class _Witness:
    """See `jfs.meta.store.outcome.Witness`."""

    def __init__(self, link: Link, layout: Layout, tx: RedisTx, lost: Connection) -> None:
        self._link = link
        self._layout = layout
        self._tx = tx
        self._lost = lost

    async def end(self) -> bool:
        connection = await self._link.shared()
        if not self._lost.run_id or not connection.run_id:
            return False
        # Another process, to which the connection never led. If the former one lives, as a replica now or as a node of a Cluster
        # without the volume's slot, it refuses what it still finds in its buffers, or loses it when it takes over the present state.
        if connection.run_id != self._lost.run_id:
            return True
        try:
            (answer,) = await connection.request(pack((b"CLIENT", b"KILL", b"ID", self._lost.client_id)), 1)
        except ConnectionLost as error:
            raise StoreAway(str(error)) from error
        return not isinstance(answer, ServerError)

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        readings = [self._layout.reading[key.kind](key) for key in keys]
        replies = iter(await self._link.read([command for reading in readings for command in reading]))
        return tuple(
            DECODING[key.kind](key, [next(replies) for _ in reading])
            for key, reading in zip(keys, readings, strict=True)
        )

    async def holds(self) -> bool:
        before: list[Command] = list(self._tx.seen)
        replies = await self._link.read(before)
        return all(reply == self._tx.seen[command] for command, reply in zip(before, replies, strict=True))
