"""The frames of HTTP/2 that gRPC needs (RFC 9113, 4 and 6): their numbers, packing, and padding. Pure."""

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME: Final = struct.Struct(">BHBBI")  # length in 8 and 16 bits, type, flags, stream
MESSAGE: Final = struct.Struct(">BI")  # of gRPC: compressed, length
U32: Final = struct.Struct(">I")
SETTING: Final = struct.Struct(">HI")
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
PUSH: Final = 5
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME = 1, 2, 3, 4, 5


def frame(kind: int, flags: int, stream: int, body: bytes | memoryview) -> bytes:
    """A whole frame."""
    size = len(body)
    return FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + body


def unpadded(flags: int, body: bytes) -> bytes:
    """What a frame of data or headers holds, without its padding. ValueError, IndexError."""
    if not flags & PADDED:
        return body
    if body[0] >= len(body):
        raise ValueError("more padding than frame")
    return body[1 : len(body) - body[0]]
