"""What is checked of a Redis server before a volume is served from it, as the real client does (format §4.1.1)."""

import logging

from jfs.errors import StoreUnavailable
from jfs.meta.engines.redis.connection import Connection, pack
from jfs.meta.engines.redis.failures import ServerError

log = logging.getLogger(__name__)


async def check_server(connection: Connection, address: str) -> int:
    """The server's major version. StoreUnavailable when it is too old; warns of settings that lose data."""
    (reply,) = await connection.request(pack((b"INFO",)), 1)
    if isinstance(reply, ServerError):
        log.warning("Redis at %s does not tell about itself (%s), so its settings are not checked", address, reply)
        return 0
    info = dict(line.split(":", 1) for line in reply.decode(errors="replace").splitlines() if ":" in line)
    version = info.get("redis_version", "")
    major = int(version.partition(".")[0]) if version.partition(".")[0].isdigit() else 0
    if version and major < 4:
        raise StoreUnavailable(f"Redis at {address} is version {version}; a volume needs 4.0 or newer")
    if info.get("aof_enabled") == "0":
        log.warning("AOF is off in Redis at %s: metadata may be lost when it stops", address)
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        (answer,) = await connection.request(pack((b"CONFIG", b"SET", b"maxmemory-policy", b"noeviction")), 1)
        if isinstance(answer, ServerError):
            log.warning(
                "maxmemory-policy of Redis at %s is %s, so it may throw metadata away; set it to noeviction",
                address,
                policy,
            )
        else:
            log.warning("maxmemory-policy of Redis at %s was %s and is noeviction now", address, policy)
    return major
