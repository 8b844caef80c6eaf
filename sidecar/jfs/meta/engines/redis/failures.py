"""What a Redis server or a connection to it can answer instead of a reply, and what that means (format §5.1)."""

import errno
from typing import Any, Final

from jfs.errors import CorruptRecord, CredentialsRefused, FsError, JfsError, StoreAway, StoreUnavailable

# Beginnings of error replies after which the same request may succeed soon; those of a Cluster at another node, which `link` finds.
_PASSING: Final = (
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "CLUSTERDOWN",
    "BUSY ",
    "ERR max number of clients reached",
    "ERR DISABLE",
    "ERR NOWRITE",
    "ERR NOREAD",
)


class ServerError(Exception):
    """An error reply; its text is the server's."""

    @property
    def text(self) -> str:
        return str(self)

    @property
    def passing(self) -> bool:
        """Whether trying again makes sense."""
        return self.text.startswith(_PASSING)

    @property
    def asking(self) -> bool:
        """Whether the key has been moved to another node of a Cluster already while its slot is on the way."""
        return self.text.startswith("ASK ")

    @property
    def forbidden(self) -> bool:
        """Whether this user may not use the command, or the server does not have it."""
        return self.text.startswith(("NOPERM", "ERR unknown command", "ERR This instance has"))


class ConnectionLost(StoreUnavailable):
    """The connection broke. *sent* tells whether the server may have got the request."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


def converted(error: ServerError, address: str) -> JfsError:
    """The exception for an error reply that is final; raise it from *error*. Server texts name no secrets."""
    text = error.text
    if text.startswith("OOM"):
        return FsError(errno.ENOSPC)
    if text.startswith(("WRONGPASS", "NOAUTH", "ERR invalid password", "ERR Client sent AUTH", "ERR AUTH")):
        return CredentialsRefused(f"Redis at {address} refuses the user or the password; check them")
    if text.startswith("NOPERM"):
        return CredentialsRefused(f"Redis at {address} does not allow this user what a volume needs ({text})")
    if text.startswith("WRONGTYPE"):
        return CorruptRecord(f"a key of the volume in Redis at {address} has another type than its record")
    if text.startswith("CLUSTERDOWN"):
        return StoreAway(
            f"the Redis Cluster at {address} is down ({text}); start its nodes, or have its slots assigned"
        )
    if text.startswith(("MOVED", "ASK", "TRYAGAIN")):
        return StoreAway(
            f"the volume's slot is being moved between nodes of Redis at {address} ({text}); wait until that is done"
        )
    kind = StoreAway if error.passing else StoreUnavailable
    return kind(f"Redis at {address} answers with an error: {text}")


def first_error(replies: list[Any]) -> ServerError | None:
    """The first error reply among *replies*."""
    for reply in replies:
        if isinstance(reply, ServerError):
            return reply
    return None
