"""One call on a connection: what of its request is still to be sent, and what of the answer has come. gRPC's messages are five bytes with
compression and length, then the message. It ends once. One event loop.
"""

import asyncio
from collections import deque
from typing import Final

from jfs.meta.engines.kv.frames import MESSAGE
from jfs.meta.engines.kv.statuses import INTERNAL, Broken, Status

LARGEST: Final = 64 << 20  # bytes of an answer


class Call:
    """*unary*: one message each way; else messages of the server go to those who wait one after the other. *deadline* is of the
    loop's clock."""

    __slots__ = (
        "buffer",
        "deadline",
        "ended",
        "error",
        "id",
        "request",
        "tries",
        "unary",
        "unsent",
        "waiting",
        "window",
    )

    def __init__(self, unary: bool, deadline: float) -> None:
        self.id = 0  # of its stream, once it has one
        self.unary = unary
        self.deadline = deadline
        self.buffer = bytearray()
        self.waiting: deque[asyncio.Future[bytes]] = deque()
        self.unsent = memoryview(b"")  # what the peer's windows did not let through
        self.window = 0
        self.request: tuple[bytes, bytes] = b"", b""  # headers and body, for when the peer does not take it yet
        self.tries = 0
        self.ended = False
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """It ends with this."""
        self.ended, self.error = True, error
        while self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                future.set_exception(error)

    def deliver(self) -> None:
        """Give whole messages to those who wait."""
        buffer = self.buffer
        while self.waiting and len(buffer) >= MESSAGE.size:
            compressed, size = MESSAGE.unpack_from(buffer)
            if compressed or size > LARGEST:
                self.fail(Status(INTERNAL, "a message that is compressed or too large"))
                return
            if len(buffer) < MESSAGE.size + size:
                break
            message = bytes(buffer[MESSAGE.size : MESSAGE.size + size])
            del buffer[: MESSAGE.size + size]
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(message)
        if self.ended:
            self.fail(self.error or Broken("the stream has ended", sent=True))

    def give(self) -> None:
        """The one answer of a call that went well is whole."""
        self.ended = True
        buffer = self.buffer
        good = len(buffer) >= MESSAGE.size
        if good:
            compressed, size = MESSAGE.unpack_from(buffer)
            good = not compressed and len(buffer) == MESSAGE.size + size
        if not good:
            self.fail(Status(INTERNAL, "an answer that is not one message"))
        elif self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(bytes(buffer[MESSAGE.size :]))
