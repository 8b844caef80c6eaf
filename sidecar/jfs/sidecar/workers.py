"""The worker processes that run, one per volume: what they are told, what they say, and their ends.

Place: between the supervisor's loop, whose selector it shares, and `worker.py`, which is one of them. Nothing here blocks. Whatever
else ends in the container, of which this is process 1, is reaped here too. One thread.
"""

import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any

from jfs.sidecar.connections import Connections
from jfs.sidecar.process import log
from jfs.sidecar.worker import Worker
from jfs.sidecar.zygote import Zygote


class Workers:
    """Workers by volume. *said* is called with volume and event, *ended* with volume, wait status and the time (monotonic seconds)."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        zygote: Zygote,
        connections: Connections,
        *,
        said: Callable[[str, dict[str, Any]], None],
        ended: Callable[[str, int, float], None],
    ) -> None:
        self._selector, self._zygote, self._connections = selector, zygote, connections
        self._said, self._ended = said, ended
        self._workers: dict[str, Worker] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def add(self, volume: str, worker: Worker) -> None:
        """Attend to a worker that has begun."""
        self._workers[volume] = worker
        if worker.socket is not None:
            self._selector.register(worker.socket, selectors.EVENT_READ, lambda: self._attend(volume, worker))

    def say(self, volume: str, message: dict[str, Any], descriptor: int = -1) -> None:
        """Send a message, with a descriptor where one is given."""
        self._workers[volume].say(message, descriptor)
        self._watch_writes(volume)

    def stop(self, volume: str, seconds: float) -> None:
        """Ask the worker to flush and end; it is killed after *seconds*."""
        worker = self._workers[volume]
        worker.kill_at = time.monotonic() + seconds
        worker.signal(signal.SIGTERM)

    def leave(self, volume: str, seconds: float) -> None:
        """Ask the worker to end and leave its mount to a successor; it is killed after *seconds*."""
        self._workers[volume].kill_at = time.monotonic() + seconds
        self.say(volume, {"command": "leave"})

    def deadlines(self) -> list[float]:
        """When workers are to be killed."""
        return [worker.kill_at for worker in self._workers.values() if worker.kill_at is not None]

    def kill_late(self, now: float) -> None:
        """Kill those whose time is over."""
        for volume, worker in self._workers.items():
            if worker.kill_at is not None and now >= worker.kill_at:
                log(f"Volume {volume}: its worker did not end in time and is killed.")
                worker.kill_at = None
                worker.signal(signal.SIGKILL)

    def reap(self) -> None:
        """Take note of every process that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            volume = next((name for name, worker in self._workers.items() if worker.pid == pid), None)
            if volume is None:
                if self._zygote.ended(pid):
                    log("The zygote ended; the next worker starts another one.")
                continue  # an orphan of the container: a probe that hung, for one
            now = time.monotonic()
            worker = self._workers[volume]
            connection = worker.socket
            self._hear(volume, worker)  # its last words
            if connection is not None and connection.fileno() >= 0 and connection in self._selector.get_map():
                self._selector.unregister(connection)
            worker.close()
            del self._workers[volume]
            self._ended(volume, status, now)

    def _attend(self, volume: str, worker: Worker) -> None:
        if worker.wants_to_write:
            worker.write()
        self._hear(volume, worker)
        self._watch_writes(volume)

    def _hear(self, volume: str, worker: Worker) -> None:
        connection = worker.socket
        registered = connection is not None and connection in self._selector.get_map()
        for line in worker.read():
            if isinstance(line, str):
                log(f"Volume {volume}: its worker said something that is not an event: {line!r}")
                continue
            if line.get("fds") == 1:
                self._connections.arrived([worker.descriptor()])
            if self._workers.get(volume) is worker:
                self._said(volume, line)
            self._connections.nobody_took()
        if worker.socket is None and registered and connection is not None:
            self._selector.unregister(connection)

    def _watch_writes(self, volume: str) -> None:
        worker = self._workers.get(volume)
        if worker is None or worker.socket is None or worker.socket not in self._selector.get_map():
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.wants_to_write else 0)
        key = self._selector.get_key(worker.socket)
        if key.events != events:
            self._selector.modify(worker.socket, events, key.data)
