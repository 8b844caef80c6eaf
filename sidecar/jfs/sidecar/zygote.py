"""The supervisor's side of the zygote: a process that has the client imported, from which workers are forked within milliseconds.

It is started with the first worker and kept; when it has died the next worker starts a new one. While it is not there, or does
not answer in time, workers are started cold. Its workers become our children, since the supervisor is a subreaper
(PR_SET_CHILD_SUBREAPER, prctl(2)), so that their death is proven to us by waitpid.
"""

import ctypes
import json
import os
import signal
import socket
from collections.abc import Sequence

from jfs.sidecar.worker import Worker, spawn

_PR_SET_CHILD_SUBREAPER = 36
# The first fork waits for the import, which takes long where the processor is shared; later ones take milliseconds.
_PATIENCE = 20.0


class Zygote:
    """See the module. Without a command there is never a zygote."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self._command = command
        self._socket: socket.socket | None = None
        self.pid = 0
        if command is not None:
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(self) -> None:
        """Have it import the client now, for workers to come. Raises OSError."""
        if self._command is None or self._socket is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = spawn(self._command, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.settimeout(_PATIENCE)
        self._socket = ours

    def fork(self, generation: int) -> Worker | None:
        """A worker, None if there is none to be had from here."""
        self.start()
        if self._socket is None:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            socket.send_fds(self._socket, [b"fork"], [theirs.fileno()])
            pid = int(json.loads(self._socket.recv(256))["pid"])
        except (OSError, ValueError, KeyError):
            ours.close()
            self.close()
            return None
        finally:
            theirs.close()
        return Worker(ours, pid, generation)

    def ended(self, pid: int) -> bool:
        """Whether the child `pid`, which has just been reaped, was the zygote."""
        if pid != self.pid:
            return False
        self.pid = 0
        self._hang_up()
        return True

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """End it; it is reaped like any child."""
        self._hang_up()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
