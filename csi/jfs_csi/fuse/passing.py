"""Packets with descriptors over Unix sockets (SOCK_SEQPACKET, SCM_RIGHTS): the only place that sends or receives them.

Every descriptor that arrives is close-on-exec from its first moment and is either handed to the caller or closed: one
that leaked into another process would keep a dead file system hanging. Non-blocking and blocking sockets both work.
"""

import array
import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

MOST = 4  # descriptors of one packet that are taken at all; the kernel drops the others and says so


@dataclass(slots=True)
class Packet:
    """One packet. The descriptors are the receiver's to close (`close`), unless it takes one (`take`)."""

    data: bytes
    descriptors: list[int]
    truncated: bool  # there were more descriptors than anybody may send

    def take(self) -> int:
        """The one descriptor, from now on the caller's. Raises ValueError if there is not exactly one."""
        if len(self.descriptors) != 1 or self.truncated:
            raise ValueError("it does not carry exactly one descriptor")
        return self.descriptors.pop()

    def close(self) -> None:
        """Close what was not taken."""
        while self.descriptors:
            os.close(self.descriptors.pop())


def receive(connection: socket.socket, most: int) -> Packet:
    """The next packet of up to `most` bytes; empty data is the end of the connection. Raises OSError.

    A longer one is cut off at `most` + 1 bytes, so that the caller can tell.
    """
    size = array.array("i").itemsize
    data, ancillary, flags, _ = connection.recvmsg(most + 1, socket.CMSG_SPACE(MOST * size), socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % size])
    return Packet(data, list(found), bool(flags & socket.MSG_CTRUNC))


def send(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet. Raises OSError (BlockingIOError if it does not fit a non-blocking socket now)."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors of which some may be gone already."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
