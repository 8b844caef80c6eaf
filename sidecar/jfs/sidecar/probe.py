"""The supervisor's answer to `jfs ready`: which volumes are served, by a Unix socket in the state directory.

In restricted mode the volumes are mounted where the sidecar does not see them, so that the startup probe cannot look for
itself. Each connection is given one JSON object, volume → phase, and closed.
"""

import contextlib
import json
import os
import selectors
import socket
from collections.abc import Callable

SOCKET = "supervisor"


class Probe:
    """Listens as long as the supervisor runs. Without a directory, or if it takes no socket, there is nothing to ask."""

    def __init__(
        self, directory: str | None, selector: selectors.BaseSelector, phases: Callable[[], dict[str, str]]
    ) -> None:
        self._phases, self._selector = phases, selector
        self._listener: socket.socket | None = None
        self._path = os.path.join(directory or "", SOCKET)
        if directory is None:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            listener.bind(self._path)
            listener.listen()
        except OSError:
            listener.close()
            return
        listener.setblocking(False)
        self._listener = listener
        selector.register(listener, selectors.EVENT_READ, self._answer)

    def _answer(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):  # whoever asked has gone
            connection, _ = self._listener.accept()
            with connection:
                connection.setblocking(False)
                connection.send(json.dumps(self._phases()).encode())

    def close(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def served(directory: str, seconds: float) -> dict[str, str] | None:
    """What the supervisor answers; None if there is none to ask."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(os.path.join(directory, SOCKET))
            said = b""
            while piece := connection.recv(1 << 16):
                said += piece
            phases = json.loads(said)
        except (OSError, ValueError):
            return None
    return phases if isinstance(phases, dict) else None
