"""Receiving descriptors over a Unix socket, close-on-exec from the first moment: one that leaks into a child keeps a dead mount
hanging. (socket.recv_fds of Python 3.11 does not pass its flags on.)"""

import array
import socket


def receive(connection: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Data and the descriptors that came with them, at most so many; the kernel closes more. Raises OSError."""
    descriptors = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(
        size, socket.CMSG_LEN(most * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(raw[: len(raw) - len(raw) % descriptors.itemsize])
    return data, list(descriptors)
