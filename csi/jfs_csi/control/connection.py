"""One connection of a sidecar: frames and descriptors in and out, at a pace that harms nobody.

A sidecar is the tenant's: it may send as fast as it likes, and descriptors with anything. What it sends faster than
`RATE` waits in its own socket's buffer, so that memory and time of the node service stay bounded; descriptors that no
frame announced are closed unseen (`passing`). Used by one task for reading, and for sending under the pod's lock.
"""

import asyncio
import contextlib
import os
import socket
from typing import Any

from jfs_csi.control import frames
from jfs_csi.control.peer import Peer
from jfs_csi.fuse.passing import Packet, receive, send

_SO_SNDBUFFORCE = 32
_SEND_WITHIN = 2.0  # seconds until a packet must have found room in the socket's buffer
RATE, BURST = 50.0, 200.0  # frames a second, and how many at once after a quiet time
_BYTES_A_FRAME = 16384  # a larger packet counts as several


class Connection:
    """Owns the socket; to be closed."""

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.peer: Peer | None = None
        self._allowance = BURST
        self._counted_at: float | None = None
        _widen(accepted)

    async def receive(self) -> Packet:
        """The next packet; empty data at the end. The caller closes it. Raises OSError."""
        loop = asyncio.get_running_loop()
        if self._allowance < 1:
            await asyncio.sleep((1 - self._allowance) / RATE)
        while True:
            try:
                packet = receive(self.socket, frames.LIMIT)
                break
            except BlockingIOError:
                await _until_readable(loop, self.socket)
        now = loop.time()
        if self._counted_at is not None:
            self._allowance = min(BURST, self._allowance + (now - self._counted_at) * RATE)
        self._counted_at = now
        self._allowance -= 1 + len(packet.data) // _BYTES_A_FRAME
        return packet

    def charge(self, frames_more: int) -> None:
        """The last frame cost as much as so many others."""
        self._allowance -= frames_more

    async def send(self, frame: dict[str, Any], descriptor: int | None = None) -> None:
        """Send one frame. Raises `frames.BadFrame` if it is too large, OSError (TimeoutError if the sidecar reads nothing)."""
        packet = frames.encode(frame)
        loop = asyncio.get_running_loop()
        # A sidecar that does not read must not hold up the pod's publishes.
        async with asyncio.timeout(_SEND_WITHIN):
            while True:
                try:
                    send(self.socket, packet, [] if descriptor is None else [descriptor])
                    return
                except BlockingIOError:
                    await _until_writable(loop, self.socket)

    def shut_down(self) -> None:
        """End it for both sides; the reading task sees the end."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The peer stays open: whoever proves its death later closes it."""
        self.socket.close()


async def ended(pidfd: int, seconds: float) -> bool:
    """Whether the process of the pidfd ends within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await _readable(asyncio.get_running_loop(), pidfd)
    except TimeoutError:
        return False
    return True


async def _until_readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    await _readable(loop, connection.fileno())


async def _readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    # A duplicate: the loop knows one reader per descriptor.
    watched = os.dup(descriptor)
    turn: asyncio.Future[None] = loop.create_future()
    loop.add_reader(watched, _resolve, turn)
    try:
        await turn
    finally:
        loop.remove_reader(watched)
        os.close(watched)


async def _until_writable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    watched = os.dup(connection.fileno())
    turn: asyncio.Future[None] = loop.create_future()
    loop.add_writer(watched, _resolve, turn)
    try:
        await turn
    finally:
        loop.remove_writer(watched)
        os.close(watched)


def _resolve(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


def _widen(connection: socket.socket) -> None:
    # A packet needs to fit the send buffer as a whole; FORCE passes wmem_max and needs CAP_NET_ADMIN.
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * frames.LIMIT)
    except PermissionError:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * frames.LIMIT)
