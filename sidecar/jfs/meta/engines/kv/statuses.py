"""How calls of gRPC services end other than by an answer, and what resets of HTTP/2 streams are then (gRPC over HTTP/2, "Errors")."""

from typing import Final

CANCEL, REFUSED_STREAM = 8, 7  # codes of resets
(
    CANCELLED,
    DEADLINE_EXCEEDED,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    OUT_OF_RANGE,
    INTERNAL,
    UNAVAILABLE,
    UNAUTHENTICATED,
) = (
    1,
    4,
    7,
    8,
    11,
    13,
    14,
    16,
)
RESETS: Final = {CANCEL: CANCELLED, 11: RESOURCE_EXHAUSTED, 12: PERMISSION_DENIED}


class Status(Exception):
    """What a server answered in place of a message: a code of gRPC and its text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text or f"status {code}")
        self.code = code


class Broken(Exception):
    """No answer. *sent*: the request may have reached the server."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent
