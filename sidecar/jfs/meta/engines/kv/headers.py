"""Headers of gRPC calls as HPACK blocks (RFC 7541) without dynamic tables: a request's is the same bytes for each call of a
method, and an answer's always means the same, so that each is decoded once. Pure but for what is remembered.
"""

from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from hpack import Decoder

_REMEMBERED: Final = 256


class Answer(NamedTuple):
    """The headers of an answer as far as they matter; *status* is None where the block has none."""

    http: str
    status: int | None
    text: str


def _text(value: bytes) -> bytes:
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    return b"\x7f" + _number(size - 127) + value


def _number(value: int) -> bytes:
    """The rest of a number that does not fit its prefix (RFC 7541, 5.1)."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


@lru_cache(maxsize=256)
def request_headers(authority: str, path: str, token: str, *, secure: bool) -> bytes:
    """The block of a request's headers: static names by number, values as they are (RFC 7541, 6.2.2; a token is never indexed)."""
    block = b"\x83" + (b"\x87" if secure else b"\x86") + b"\x04" + _text(path.encode())
    block += b"\x01" + _text(authority.encode())
    block += b"\x00" + _text(b"te") + _text(b"trailers")
    block += b"\x0f\x10" + _text(b"application/grpc") + b"\x0f\x2b" + _text(b"juicefs")
    if token:
        block += b"\x10" + _text(b"token") + _text(token.encode())
    return block


class AnswerHeaders:
    """Reads the blocks of one connection's answers; the peer was told to keep no dynamic table."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._decoder.max_allowed_table_size = 0
        self._known: dict[bytes, Answer] = {}

    def read(self, block: bytes) -> Answer:
        """What a block says. hpack.HPACKError, ValueError."""
        answer = self._known.get(block)
        if answer is None:
            answer = self._decode(block)
            if len(self._known) < _REMEMBERED:
                self._known[block] = answer
        return answer

    def _decode(self, block: bytes) -> Answer:
        http, status, text = "", None, ""
        for name, value in self._decoder.decode(block, raw=True):
            if name == b":status":
                http = value.decode("ascii", "replace")
            elif name == b"grpc-status":
                status = int(value)
            elif name == b"grpc-message":
                text = unquote_to_bytes(value).decode(errors="replace")
        return Answer(http, status, text)
