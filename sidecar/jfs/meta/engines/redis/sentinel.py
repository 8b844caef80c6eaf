"""Which server is the master right now: asked of Redis Sentinels, one after the other, before each connection is made.

Sentinels close the connections of a master that became a replica, so that whoever was connected comes here again.
"""

import asyncio

from jfs.errors import CredentialsRefused, StoreAway
from jfs.meta.engines.redis.connection import Command, pack_all
from jfs.meta.engines.redis.dialling import reach
from jfs.meta.engines.redis.failures import ConnectionLost, first_error
from jfs.meta.engines.redis.url import RedisAddress

_ANSWER_WITHIN = 1.0  # seconds for each Sentinel


async def ask_sentinels(address: RedisAddress) -> tuple[str, int]:
    """Host and port of the master. StoreAway when no Sentinel knows it, CredentialsRefused when they do not talk to us."""
    reasons = []
    for host, port in address.sentinels:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                found = await _ask(address, host, port)
        except (OSError, TimeoutError, ConnectionLost) as error:
            reasons.append(f"{host}:{port}: {error or 'no answer'}")
        else:
            if found is not None:
                return found
            reasons.append(f"{host}:{port} knows no master {address.master}")
    raise StoreAway(f"no Sentinel of {address} tells where the master is ({'; '.join(reasons)})")


async def _ask(address: RedisAddress, host: str, port: int) -> tuple[str, int] | None:
    connection = await reach(address, host, port)
    try:
        commands: list[Command] = [("AUTH", address.sentinel_password)] if address.sentinel_password else []
        commands.append(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.master))
        replies = await connection.request(pack_all(commands), len(commands))
        if error := first_error(replies):
            raise CredentialsRefused(
                f"the Sentinel {host}:{port} refuses to answer ({error}); check SENTINEL_PASSWORD"
            ) from error
    finally:
        await connection.close()
    return None if replies[-1] is None else (replies[-1][0].decode(), int(replies[-1][1]))
