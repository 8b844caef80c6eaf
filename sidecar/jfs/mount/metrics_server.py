"""Prometheus metrics over HTTP at `--metrics` (format §8.4): `GET /metrics`, nothing else.

Small enough to need no web framework in the sidecar's memory. A taken port is not an error: the next free one is used, as the
real client does. Concurrency: one short task per connection; a scraper that stalls is dropped after ten seconds.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from jfs.errors import ConfigError

log = logging.getLogger("jfs.metrics")
_TRIES: Final = 100
_PATIENCE: Final = 10.0


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of `host:port` or `:port`; ConfigError."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"option metrics: {text!r} is not an address; write it like 127.0.0.1:9567")
    return host.strip("[]"), int(port)


class MetricsServer:
    """The listening socket and its connections."""

    def __init__(self, text: Callable[[], Awaitable[str]]) -> None:
        self._text = text
        self._server: asyncio.Server | None = None
        self.address = ""

    async def start(self, address: str) -> None:
        """Listen at *address* or the next free port; ConfigError when the host is none of ours."""
        host, port = split_address(address)
        last: OSError | None = None
        for candidate in [port] if port == 0 else range(port, min(port + _TRIES, 65536)):
            try:
                self._server = await asyncio.start_server(self._serve, host or None, candidate)
            except OSError as error:
                last = error
                continue
            bound = self._server.sockets[0].getsockname()
            self.address = f"{host or '0.0.0.0'}:{bound[1]}"
            log.info("metrics at http://%s/metrics", self.address)
            return
        raise ConfigError(f"metrics cannot be served at {address}: {last.strerror if last else 'no free port'}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                line = await reader.readline()
                while (await reader.readline()).strip():
                    pass
                method, _, rest = line.decode("latin-1").partition(" ")
                path = rest.partition(" ")[0].partition("?")[0]
                if method in ("GET", "HEAD") and path == "/metrics":
                    status, body = "200 OK", (await self._text()).encode()
                else:
                    status, body = "404 Not Found", b"see /metrics\n"
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + (b"" if method == "HEAD" else body))
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            log.debug("a metrics connection was dropped")
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
