"""A pod whose control socket is open: what `server.py`, `sessions.py` and `carrier.py` share of it, under the pod's lock."""

import asyncio
import socket
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from jfs_csi.control.connection import Connection
from jfs_csi.control.peer import Peer
from jfs_csi.control.pod import PodControl


@dataclass(slots=True)
class RunningPod:
    control: PodControl
    lock: asyncio.Lock
    listener: socket.socket | None = None
    acceptor: asyncio.Task[None] | None = None
    connection: Connection | None = None  # of the session
    peer: Peer | None = None  # of the last session, until another process's is accepted
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)  # retries by volume, and one of the pod
    quiet_until: float = 0.0  # monotonic time until which complaints are not repeated
    answers: dict[tuple[type, str, int], asyncio.Future[Any]] = field(default_factory=dict)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of the pod; cancelled when the pod goes."""
        task = asyncio.create_task(work, name=f"control socket {self.control.pod_uid}")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task
