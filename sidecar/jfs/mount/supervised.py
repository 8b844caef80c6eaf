"""A background mount whose client may be killed: a parent holds the FUSE connection and starts the next client on it.

What a sidecar's supervisor does for a pod, for `jfs mount -d --supervised` on any machine: the parent keeps a descriptor of the
connection, the state of the mount (`survival`) lies in memory (tmpfs), and a client that dies by a signal is followed by one
that goes on with the session, the open files, and the requests that were under way. A client that ends by itself has
unmounted, and the parent follows it.
Concurrency: the parent has one thread and no event loop; it waits for its one child, and passes signals on to it. Clients are
forked from it, so that neither address nor password gets into a command line. Two never serve: a client is started when
the end of the former one has been waited for. One whose parent is killed goes on alone.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from jfs.errors import JfsError
from jfs.fuse.connection import Agreed, Connection
from jfs.fuse.mounting import Attached
from jfs.mount.process import run
from jfs.mount.serve import Mount, MountRequest

log = logging.getLogger("jfs.mount")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SHARED_MEMORY: Final = "/dev/shm"  # the state must outlive the client, and nothing else
_LONGEST: Final = 1 << 16
_DELAY_FIRST, _DELAY_LONGEST = 0.5, 30.0  # seconds between clients that do not come to serve
_LASTING: Final = 60.0  # seconds; a client that lived so long was not short-lived …
_AT_ONCE: Final = 3  # … and so many short-lived ones that served are followed without a delay


class Supervisor:
    """`ready` is called once, when the first client serves; `let_go` in each client, to close what only the parent needs."""

    def __init__(self, request: MountRequest, ready: Callable[[], None], let_go: Callable[[], None]) -> None:
        self._request, self._tell_ready, self._let_go = request, ready, let_go
        self._connection: Connection | None = None
        self._attached: Attached | None = None
        self._child = 0
        self._told = 0

    def serve(self) -> int:
        """Until the file system is unmounted; the exit status. JfsError when it could not be mounted."""
        memory = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
        folder = tempfile.mkdtemp(prefix="jfs-mount-", dir=memory)
        woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(woken[1], warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)
        gc.freeze()  # collections in the clients leave these pages shared
        try:
            return self._keep_serving(folder, woken[0])
        finally:
            if self._child:  # a fault of this program: what the client has is stored before its state goes
                self._pass_on(signal.SIGTERM, None)
                os.waitpid(self._child, 0)
            if self._attached is not None:
                self._attached.detach()  # nobody is going to serve it
                os.close(self._attached.fd)
            shutil.rmtree(folder, ignore_errors=True)

    def _keep_serving(self, folder: str, woken: int) -> int:
        short = 0  # lives in a row
        while True:
            began = time.monotonic()
            served, status = self._one_client(folder)
            if self._connection is None or (served and os.WIFEXITED(status)):
                return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1
            if self._is_told() or not self._is_alive():
                log.warning("the client ended (%d) and is not followed", os.waitstatus_to_exitcode(status))
                return 1
            short = 0 if time.monotonic() - began > _LASTING else short + 1
            delay = 0.0 if served and short <= _AT_ONCE else min(_DELAY_LONGEST, _DELAY_FIRST * 2 ** min(short, 10))
            how = os.waitstatus_to_exitcode(status)
            log.warning("the client ended (%d); the next one serves the mount in %g s", how, delay)
            select.select([woken], [], [], delay)
            if self._is_told():
                return 1

    def _one_client(self, folder: str) -> tuple[bool, int]:
        """Start a client and wait for its end: whether it served, and its wait status. JfsError that kept the first from mounting."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._child = os.fork()
        if not self._child:
            status = 1
            try:
                ours.close()
                self._let_go()
                signal.set_wakeup_fd(-1)
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                status = _client(replace(self._request, connection=self._connection, state=folder), theirs)
            finally:
                if os.getppid() != parent:  # it would have removed the state
                    shutil.rmtree(folder, ignore_errors=True)
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        served, failure = False, ""
        with ours:
            while True:
                packet, descriptors, _, _ = socket.recv_fds(ours, _LONGEST, 1)
                if not packet:
                    break
                said: dict[str, Any] = json.loads(packet)
                failure = said.get("error", "")
                if not failure:
                    served = True
                    self._serves(said.get("agreed"), descriptors)
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        if failure and self._connection is None and not served:
            raise MountFailed(failure)
        return served, status

    def _serves(self, agreed: dict[str, int] | None, descriptors: list[int]) -> None:
        first = self._connection is None
        if agreed is not None and descriptors:
            os.set_inheritable(descriptors[0], False)
            if first:
                self._connection = Connection(descriptors[0], Agreed.of(agreed), resume=True)
                self._attached = Attached.adopted(self._request.mountpoint, descriptors[0])
            else:
                os.close(descriptors[0])
        if first:
            self._tell_ready()

    def _is_alive(self) -> bool:
        """Whether the connection has not ended: fuse_dev_poll answers EPOLLERR then."""
        assert self._connection is not None
        poll = select.poll()
        poll.register(self._connection.fd, select.POLLIN)
        return not any(events & select.POLLERR for _, events in poll.poll(0))

    def _is_told(self) -> bool:
        return self._told > 0

    def _pass_on(self, number: int, _frame: Any) -> None:
        self._told += 1
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)


class MountFailed(JfsError):
    """The first client could not mount; the text is its sentence."""


def _client(request: MountRequest, channel: socket.socket) -> int:
    """The client's process; the exit status."""
    mount = Mount(request)

    async def ready() -> None:
        connection = mount.connection
        if connection is None or not connection.agreed.resends:
            log.warning("this kernel cannot repeat requests (Linux 6.9 can): a client that dies is not followed")
            channel.send(b"{}")
            return
        socket.send_fds(channel, [json.dumps({"agreed": connection.agreed.record()}).encode()], [connection.fd])

    try:
        asyncio.run(run(mount, ready))
    except JfsError as error:
        log.error("%s", error)
        channel.send(json.dumps({"error": str(error)}).encode())
        return 1
    except Exception as error:
        log.exception("the mount ended by a mistake of this program")
        channel.send(json.dumps({"error": f"the mount ended by a mistake of this program: {error!r}"}).encode())
        return 1
    return 0
