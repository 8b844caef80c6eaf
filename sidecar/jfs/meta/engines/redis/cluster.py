"""Which node of a Redis Cluster has a volume: all its keys begin with the hash tag `{db}`, so that they are in one slot, and that
slot is at one node (format §4.1.1). To everything else that node is a single server.

Asked of the nodes one after the other before each connection is made, as with Sentinels; a node that refuses a request because the
slot is elsewhere (MOVED) says where, and is believed once. Belongs to one link and its event loop; nothing here connects for long.
"""

import asyncio
import binascii
from collections import deque
from typing import Any, Final

from jfs.errors import CredentialsRefused, StoreAway, StoreUnavailable
from jfs.meta.engines.redis.connection import Command, pack_all
from jfs.meta.engines.redis.dialling import reach
from jfs.meta.engines.redis.failures import ConnectionLost, converted, first_error
from jfs.meta.engines.redis.url import RedisAddress

_ANSWER_WITHIN: Final = 1.0  # seconds for each node
_SLOTS: Final = 16384

Place = tuple[str, int]


class Cluster:
    """The nodes of one Cluster as they were last told, and the slot of one volume."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self.slot = binascii.crc_hqx(b"%d" % address.db, 0) % _SLOTS
        self._nodes = deque(address.nodes)  # who is asked, in this order
        self._told: Place | None = None  # where a MOVED said the slot is

    def moved(self, text: str, host: str) -> None:
        """Take the word of a MOVED that came from *host*."""
        self._told = redirection(text, host)

    async def owner(self) -> Place:
        """Host and port of the node that has the slot. StoreAway when no node tells, CredentialsRefused when they do not talk to us."""
        if self._told is not None:
            told, self._told = self._told, None
            return told
        reasons = []
        nodes = [*self._nodes, *(node for node in self._address.nodes if node not in self._nodes)]
        for host, port in nodes:
            try:
                async with asyncio.timeout(_ANSWER_WITHIN):
                    slots = await self._ask(host, port)
            except (OSError, TimeoutError, ConnectionLost, StoreAway) as error:
                reasons.append(f"{host}:{port}: {error or 'no answer'}")
                continue
            found = self._learn(slots, host)
            # The others are asked first next time: if this one is mistaken, its word led nowhere.
            self._nodes.rotate(-1)
            if found is not None:
                return found
            reasons.append(f"{host}:{port}: at no node")
        raise StoreAway(
            f"no node of {self._address} tells where slot {self.slot} is, which has the volume's keys"
            f" ({'; '.join(reasons)}); start the Cluster's nodes, or have the slot assigned"
        )

    def _learn(self, slots: list[Any], asked: str) -> Place | None:
        """Keep the nodes of an answer to CLUSTER SLOTS; the one that has our slot."""
        found = None
        nodes = []
        for first, last, *places in slots:
            told = [_place(host, int(port), asked) for host, port, *_ in places]
            nodes += told
            if first <= self.slot <= last:
                found = told[0]
        if nodes:
            self._nodes = deque(dict.fromkeys(nodes))
        return found

    async def _ask(self, host: str, port: int) -> list[Any]:
        connection = await reach(self._address, host, port)
        try:
            commands: list[Command] = [*self._address.authentication(), (b"CLUSTER", b"SLOTS")]
            replies = await connection.request(pack_all(commands), len(commands))
        finally:
            await connection.close()
        if error := first_error(replies):
            if "cluster support disabled" in error.text:
                raise StoreUnavailable(
                    f"{host}:{port} of {self._address} is no node of a Redis Cluster; name the one server, or"
                    " master,sentinel1,sentinel2:26379"
                ) from error
            failure = converted(error, f"{host}:{port}")
            if isinstance(failure, CredentialsRefused):
                raise failure from error
            raise StoreAway(str(failure)) from error
        slots: list[Any] = replies[-1]
        return slots


def redirection(text: str, asked: str) -> Place:
    """Where a MOVED or ASK points that came from host *asked*."""
    host, _, port = text.split()[2].rpartition(":")
    return _place(host.encode(), int(port), asked)


def _place(told: bytes | None, port: int, asked: str) -> Place:
    """A node as another one tells of it. Where it does not know the host, or knows one that leads only from there, it is *asked*'s."""
    host = (told or b"").decode().strip("[]")
    if host in ("", "?") or (_is_loopback(host) and not _is_loopback(asked)):
        host = asked
    return host, port


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("localhost", "::1")
