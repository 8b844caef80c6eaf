"""`jfs sidecar --control DIR`: first process of the sidecar's container; keeps the control session and the workers.

One thread and one selector: the control socket, the workers' sockets, a wake-up pipe for signals, and the nearest deadline.
What is to be done is decided by `volumes.py`; this module does it, `workers.py` as far as workers go. Invariant: nothing here
blocks on a volume – no path below a mount point is ever looked at. As process 1 it also reaps what is orphaned.

It holds a descriptor of each volume's FUSE connection (`connections.py`): a worker that dies is followed by another one, forked
from the zygote, which serves the same connection. What a worker leaves for that is in the state directory.

SIGTERM: all workers flush and end within JFS_GRACE_SECONDS, then exit status 0; `ending.py` says what becomes of the mounts.
"""

import argparse
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jfs.sidecar import frames, mounts, process
from jfs.sidecar.actions import (
    Action,
    Adopt,
    AwaitEnd,
    ClearMount,
    Close,
    Command,
    Deposit,
    Drop,
    Leave,
    LetGo,
    Log,
    Send,
    Start,
    StartLater,
    State,
    Stop,
)
from jfs.sidecar.connections import Connections
from jfs.sidecar.passing import receive
from jfs.sidecar.probe import Probe
from jfs.sidecar.process import log
from jfs.sidecar.state import CONFIGURED, StateRoot
from jfs.sidecar.timers import Timers
from jfs.sidecar.volumes import BROKEN_SECONDS, Volumes
from jfs.sidecar.worker import Worker
from jfs.sidecar.workers import Workers
from jfs.sidecar.zygote import Zygote

BEAT_SECONDS = 10.0
STATE_SECONDS = 1.0  # between two STATE frames of a volume
BACK_OFF_FIRST, BACK_OFF_LONGEST = 0.05, 2.0  # seconds between attempts to connect
WELCOME_WITHIN = 10.0
# A volume's dead mounts that may lie on each other (see `volumes.py`); more come from a crash loop and are taken away,
# at the price that containers which hold them must be started again.
MOST_DEAD_MOUNTS = 16


class Supervisor:
    """The loop. `command` starts a worker, `zygote` the process that workers are forked from instead."""

    def __init__(
        self,
        control: str,
        command: Sequence[str],
        grace: float,
        *,
        zygote: Sequence[str] | None = None,
        state: str | None = None,
    ) -> None:
        self._control, self._command, self._grace = os.path.realpath(control), command, grace
        self._session = os.urandom(16).hex()
        self._version = process.version()
        self._volumes = Volumes()
        self._state = StateRoot(state)
        self._timers = Timers()
        self._state_sent: dict[str, float] = {}
        self._selector = selectors.DefaultSelector()
        self._zygote = Zygote(zygote)
        self._connections = Connections()
        self._workers = Workers(
            self._selector, self._zygote, self._connections, said=self._worker_said, ended=self._worker_ended
        )
        self._socket: socket.socket | None = None
        self._connect_at = 0.0
        self._back_off = BACK_OFF_FIRST
        self._beat_at = 0.0
        self._welcome_by = 0.0
        self._complained = ""
        self._terminate = False

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        former = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_terminate)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # only the wake-up is wanted
        self._selector.register(wake_read, selectors.EVENT_READ, None)
        probe = Probe(self._state.path, self._selector, self._volumes.phases)
        try:
            while not self._ended():
                self._turn(wake_read)
            log("All volumes are flushed; ending.")
            return 0
        finally:
            signal.set_wakeup_fd(former)
            self._hang_up()
            probe.close()
            self._zygote.close()
            self._connections.close()
            self._state.close()
            self._selector.close()
            os.close(wake_read)
            os.close(wake_write)

    def _on_terminate(self, _number: int, _frame: Any) -> None:
        self._terminate = True

    def _ended(self) -> bool:
        if self._terminate and not self._volumes.terminating:
            log(f"Asked to end: flushing, at most {self._grace:g} s.")
            self._do(self._volumes.terminate(self._grace))
        return self._volumes.ended and not self._workers

    def _turn(self, wake_read: int) -> None:
        now = time.monotonic()
        if self._socket is None and now >= self._connect_at and not self._volumes.terminating:
            self._connect(now)
        self._meet_deadlines(time.monotonic())
        for key, _ in self._selector.select(self._patience(time.monotonic())):
            if key.data is None:
                while process.drain(wake_read):
                    pass
            else:
                key.data()
        self._workers.reap()

    def _patience(self, now: float) -> float | None:
        """Seconds until something is due, None if only events matter."""
        due = [*self._workers.deadlines(), *self._timers.times()]
        if self._socket is None:
            if not self._volumes.terminating:
                due.append(self._connect_at)
        else:
            due.append(self._beat_at if self._volumes.welcomed else self._welcome_by)
        if self._terminate and not self._volumes.terminating:
            return 0.0
        return max(0.0, min(due) - now) if due else None

    def _meet_deadlines(self, now: float) -> None:
        self._workers.kill_late(now)
        self._timers.run(now)
        if self._socket is None:
            return
        if not self._volumes.welcomed:
            if now >= self._welcome_by:
                self._do([Close("The node service did not answer HELLO in time.", BACK_OFF_LONGEST)])
        elif now >= self._beat_at:
            self._beat_at = now + BEAT_SECONDS
            self._do([Send(frames.beat(self._volumes.beats()))])

    # --- connection --------------------------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        connection: socket.socket | None = None
        try:
            connection = process.connect(self._control)
            hello = frames.hello(self._session, self._version, self._volumes.attached())
            connection.send(frames.encode(hello))
        except OSError as error:
            if connection is not None:
                connection.close()
            # Said once per cause: it may take long until the node service is there.
            text = f"The node service's socket in {self._control} cannot be reached: {error.strerror}; trying on."
            if text != self._complained:
                log(text)
                self._complained = text
            self._connect_at = now + self._back_off
            self._back_off = min(self._back_off * 2, BACK_OFF_LONGEST)
            return
        self._socket = connection
        self._welcome_by = now + WELCOME_WITHIN
        self._beat_at = now + BEAT_SECONDS
        self._selector.register(connection, selectors.EVENT_READ, self._receive)

    def _receive(self) -> None:
        connection = self._socket
        if connection is None:
            return
        try:
            packet, descriptors = receive(connection, frames.LIMIT + 1, 1)
        except BlockingIOError:
            return
        except OSError as error:
            self._do([Close(f"The connection to the node service broke: {error.strerror}.", 0.0)])
            return
        if not packet:
            self._do([Close("The node service closed the connection; mounts stay.", 0.0)])
            return
        self._connections.arrived(descriptors)
        try:
            self._take_frame(packet)
        finally:
            self._connections.nobody_took()

    def _take_frame(self, packet: bytes) -> None:
        try:
            frame = frames.decode(packet)
        except frames.BadFrame as error:
            self._do([Close(f"Connection to the node service closed. {error}", BROKEN_SECONDS)])
            return
        if frame is None:
            log(f"A frame of type {frames.kind(packet)} is unknown here and ignored.")
            return
        self._do(self._volumes.frame(frame))
        if self._volumes.welcomed:
            self._back_off, self._complained = BACK_OFF_FIRST, ""

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None
            self._do(self._volumes.disconnected())

    # --- actions -----------------------------------------------------------------------------------------------

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Log(text):
                    log(text)
                case Send(frame):
                    self._send(frame)
                case Deposit(volume, frame):
                    self._send(frame, self._connections.of(volume))
                case State(volume, frame):
                    self._send_state(volume, frame)
                case Start():
                    self._start(action)
                case StartLater(volume, seconds):
                    self._timers.set(("start", volume), seconds, partial(self._start_due, volume))
                case Stop(volume, seconds):
                    self._workers.stop(volume, seconds)
                case Leave(volume, seconds):
                    self._workers.leave(volume, seconds)
                case LetGo(volume, mountpoint, seconds):
                    if mounts.released(os.path.join(self._control, mountpoint)):
                        self._do([Stop(volume, seconds)])
                    else:
                        log(f"Volume {volume} is in use: it stays mounted.")
                        self._workers.leave(volume, seconds)
                case Adopt(volume):
                    self._connections.adopt(volume)
                case Drop(volume):
                    self._connections.drop(volume)
                case Command(volume, command):
                    self._workers.say(volume, command)
                case ClearMount(mountpoint):
                    self._clear(mountpoint)
                case AwaitEnd(seconds):
                    self._timers.set(("end", ""), seconds, lambda: self._do(self._volumes.undecided()))
                case Close(reason, seconds):
                    log(reason)
                    self._hang_up()
                    self._connect_at = time.monotonic() + max(seconds, self._back_off)
                    self._back_off = min(self._back_off * 2, BACK_OFF_LONGEST)

    def _start_due(self, volume: str) -> None:
        self._do(self._volumes.due(volume))

    def _send(self, frame: dict[str, Any], descriptor: int = -1) -> None:
        if self._socket is None or not self._volumes.welcomed:
            return  # the next HELLO tells what stands
        try:
            socket.send_fds(self._socket, [frames.encode(frame)], [descriptor] if descriptor >= 0 else [])
        except OSError as error:
            # Also when its buffer is full: a node service that reads nothing is given up and connected to anew.
            self._do([Close(f"The node service takes no frames: {error.strerror}.", 0.0)])

    def _send_state(self, volume: str, frame: dict[str, Any]) -> None:
        now = time.monotonic()
        wait = self._state_sent.get(volume, -STATE_SECONDS) + STATE_SECONDS - now
        if wait > 0:
            self._timers.set(("state", volume), wait, lambda: self._send_state(volume, frame))
            return
        self._timers.cancel(("state", volume))
        self._state_sent[volume] = now
        self._send(frame)

    def _start(self, start: Start) -> None:
        mountpoint = os.path.join(self._control, start.mountpoint) if start.mountpoint else ""
        replace = False
        try:
            if not start.connected:
                dead = len(mounts.kinds_at(mountpoint))
                if dead >= MOST_DEAD_MOUNTS:
                    log(f"Volume {start.volume}: took away {mounts.clear(mountpoint)} dead mounts.")
                    dead = 0
                replace = dead > 0
            worker = self._zygote.fork(start.generation) or Worker.spawn(self._command, start.generation)
        except OSError as error:
            how = f"before it began: {error.strerror or error}"
            self._do(self._volumes.worker_ended(start.volume, how, time.monotonic()))
            return
        self._workers.add(start.volume, worker)
        document = {**start.document, "mountpoint": mountpoint, "replace": replace}
        state = self._state.of(start.volume)
        if state is not None:
            document["state"] = state
        descriptor = self._connections.of(start.volume) if start.connected else -1
        self._workers.say(start.volume, {**document, "fds": 1} if descriptor >= 0 else document, descriptor)

    def _clear(self, mountpoint: str) -> None:
        try:
            mounts.clear(os.path.join(self._control, mountpoint))
        except OSError as error:
            log(f"A mount is left behind: {error}")

    def _worker_said(self, volume: str, line: dict[str, Any]) -> None:
        self._do(self._volumes.worker_said(volume, line, time.monotonic()))

    def _worker_ended(self, volume: str, status: int, now: float) -> None:
        self._do(self._volumes.worker_ended(volume, process.how(status), now, clean=status == 0))


def main(argv: Sequence[str] | None = None, *, worker: Callable[[], Sequence[str]] | None = None) -> int:
    """`jfs sidecar`. Returns the exit status. `worker` gives another command to run as worker, without a zygote."""
    parser = argparse.ArgumentParser(prog="jfs sidecar", description="Mounts the volumes of this pod.")
    parser.add_argument("--control", required=True, metavar="DIR", help="the control directory, /run/jfs in a pod")
    options = parser.parse_args(argv)
    if not os.path.isdir(options.control):
        parser.error(f"--control {options.control} is not a directory: is the control volume mounted there?")
    if worker is not None:
        return Supervisor(options.control, worker(), process.grace_seconds(parser), state=CONFIGURED).run()
    command, zygote = ((sys.executable, "-m", "jfs", name) for name in ("worker", "zygote"))
    return Supervisor(options.control, command, process.grace_seconds(parser), zygote=zygote, state=CONFIGURED).run()
