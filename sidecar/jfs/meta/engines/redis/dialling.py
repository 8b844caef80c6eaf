"""One connection to one server, made as the address says: TLS, time-outs, keep-alive. Whoever asks for it greets it.

Nothing is tried again here; errors are the system's (OSError, TimeoutError of the caller). Any number of tasks at once.
"""

import asyncio
import socket
from collections.abc import Callable

from jfs.meta.engines.redis.connection import Connection
from jfs.meta.engines.redis.url import RedisAddress


async def reach(
    address: RedisAddress, host: str, port: int, moved: Callable[[Connection, str], None] | None = None
) -> Connection:
    """A connection to a server of *address*, at its socket or at *host* and *port*; see `Connection` for *moved*."""
    loop = asyncio.get_running_loop()
    name = str(address)

    def protocol() -> Connection:
        return Connection(name, address.read_timeout, address.write_timeout, moved)

    context = address.tls_context()
    if address.socket_path:
        _, connection = await loop.create_unix_connection(protocol, address.socket_path)
        return connection
    name_shown = (address.tls_server_name or host) if context else None
    transport, connection = await loop.create_connection(protocol, host, port, ssl=context, server_hostname=name_shown)
    connection.place = (host, port)
    _keep_alive(transport.get_extra_info("socket"))
    return connection


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out that an idle peer is gone, before a request waits for it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
