"""State machine of the sidecar: which volume is at which generation, and what its worker is doing.

Told what happened (a frame, a worker's event or end, the connection's end), it returns actions for `supervisor.py` to
carry out in order. No I/O; where the time matters it is told.

Rules:
- one worker per volume; a newer generation ends the old worker and starts only after it has ended;
- a frame of an older generation than the newest seen is dropped;
- a FUSE connection that is held (`Volume.init`) outlives its worker: the next worker serves it, with the same generation, and
  at once unless workers keep dying. Applications only wait. It is given up when the connection itself has ended, or when the
  volume is detached;
- without one (an older client, pyfuse3) a worker that ends unasked is reported (`MountLost` if it had been mounted) and
  not restarted: the node service decides, with a new generation. The dead mount stays until the volume is detached: the
  next worker mounts on top of it, and by mount propagation its mount appears in every container that holds the dead one;
- mounts outlive the connection to the node service; the next HELLO lists them. What could not be said while disconnected is
  not said later: the node service concludes it from that list.
"""

from typing import Any

from jfs.sidecar import frames
from jfs.sidecar.actions import (
    Action,
    Adopt,
    ClearMount,
    Close,
    Command,
    Deposit,
    Drop,
    Leave,
    Log,
    Send,
    Start,
    StartLater,
    State,
    Stop,
)
from jfs.sidecar.ending import Ending
from jfs.sidecar.volume import Phase, Volume, count, document, init_of

MOUNT_LOST = "MountLost"
WORKER_ENDED = "WorkerEnded"
CANNOT_CHANGE = "CannotChange"
STOPPING_SECONDS = 10.0  # a worker that is asked to end for a newer generation or a DETACH is killed after this
# Least seconds until the next attempt to connect, after the node service refused us or broke the protocol.
REFUSED_SECONDS = 1.0
BROKEN_SECONDS = 0.2


class Volumes:
    """All volumes of the pod."""

    def __init__(self) -> None:
        self.running: dict[str, Volume] = {}
        self.welcomed = False
        self.proto = 1
        self.ending: Ending | None = None
        self._newest: dict[str, int] = {}  # generation, of volumes without a worker too

    @property
    def terminating(self) -> bool:
        return self.ending is not None

    @property
    def ended(self) -> bool:
        """Whether the supervisor was told to end and nothing is left to be done."""
        return self.ending is not None and not self.ending.asking and not self.running

    def attached(self) -> list[tuple[str, int]]:
        """Mounted volumes and their generations, for HELLO."""
        return [(volume.name, volume.generation) for volume in self.running.values() if volume.is_attached]

    def beats(self) -> list[tuple[str, int, int, int, int]]:
        return [
            (volume.name, volume.generation, volume.inflight, volume.dirty_bytes, volume.oldest_ms)
            for volume in self.running.values()
            if volume.phase is Phase.READY
        ]

    def phases(self) -> dict[str, str]:
        """For the startup probe."""
        return {volume.name: volume.phase.value for volume in self.running.values()}

    def disconnected(self) -> list[Action]:
        self.welcomed = False
        return self.undecided() if self.ending is not None else []

    # --- the end of the sidecar --------------------------------------------------------------------------------

    def terminate(self, seconds: float) -> list[Action]:
        """SIGTERM: flush; then the node service says whether the pod ends or a successor comes."""
        self.ending = Ending(seconds)
        for volume in self.running.values():
            volume.successor = volume.queued = None
        return self._without_workers(self.ending.begin(self.running, can_ask=self.welcomed and self.proto >= 2))

    def undecided(self) -> list[Action]:
        """The node service does not answer ENDING."""
        return self._without_workers(self.ending.undecided(self.running)) if self.ending is not None else []

    def _without_workers(self, actions: list[Action]) -> list[Action]:
        """Forget volumes that wait for a worker which will not come."""
        if self.ending is not None and not self.ending.asking:
            for volume in [one for one in self.running.values() if one.phase is Phase.WAITING]:
                del self.running[volume.name]
                if not self.ending.keep and volume.mountpoint:
                    actions.append(ClearMount(volume.mountpoint))
                actions.append(Drop(volume.name))
        return actions

    # --- frames ------------------------------------------------------------------------------------------------

    def frame(self, frame: frames.Incoming) -> list[Action]:
        """A frame of the node service."""
        if not self.welcomed:
            match frame:
                case frames.Welcome():
                    return self._welcome(frame)
                case frames.Refused():
                    return [Close(f"The node service refused this sidecar: {frame.message}", REFUSED_SECONDS)]
                case _:
                    return [Close("The node service's first frame is neither WELCOME nor REFUSED.", BROKEN_SECONDS)]
        match frame:
            case frames.Attach():
                return self._attach(frame)
            case frames.Quiesce():
                return self._quiesce(frame)
            case frames.Detach():
                return self._detach(frame)
            case frames.Update():
                return self._update(frame)
            case frames.End() if self.ending is not None:
                return self._without_workers(self.ending.decided(self.running, frame.keep))
            case frames.End():
                return []
            case _:
                return [Close(f"A {type(frame).__name__.upper()} frame came out of order.", BROKEN_SECONDS)]

    def _welcome(self, frame: frames.Welcome) -> list[Action]:
        self.welcomed, self.proto = True, frame.proto
        # Frames of former connections cannot come any more; only what runs is to be fenced.
        self._newest = {name: self._newest[name] for name in self.running if name in self._newest}
        actions: list[Action] = [Log(f"Connected to the node service of {frame.node}.")]
        for volume in self.running.values():
            if volume.is_attached:
                actions += self._deposit(volume)
        return actions

    def _deposit(self, volume: Volume) -> list[Action]:
        """What the node service is to know and keep of a volume that is served."""
        if self.proto < 2:
            return []
        actions: list[Action] = []
        if volume.init is not None:
            actions.append(Deposit(volume.name, frames.deposit(volume.name, volume.generation, volume.init)))
        return [*actions, State(volume.name, volume.state())]

    def _attach(self, attach: frames.Attach) -> list[Action]:
        if attach.generation <= self._newest.get(attach.volume, 0):
            return [Log(f"ATTACH of volume {attach.volume} is of an older generation and dropped.")]
        if self.terminating:
            return [Log(f"ATTACH of volume {attach.volume} is dropped: this sidecar is ending.")]
        self._newest[attach.volume] = attach.generation
        held: list[Action] = [Adopt(attach.volume)] if attach.init is not None else []
        volume = self.running.get(attach.volume)
        if volume is None:
            return [*held, *self._start(Volume(attach))]
        if volume.phase is Phase.WAITING:
            return [*held, *self._replace(volume, attach)]
        if volume.successor is not None and attach.init is None:  # the descriptor that came with it is held
            attach = attach._replace(init=volume.successor.init, resume=volume.successor.resume)
        volume.successor = attach
        if volume.phase in (Phase.STOPPING, Phase.FAILED, Phase.LEAVING):
            return held
        return [*held, self._end_worker(volume)]

    def _end_worker(self, volume: Volume) -> Action:
        """End a worker for its successor: on the same connection where there is one."""
        if volume.init is not None:
            starting = volume.phase is Phase.STARTING  # it obeys no commands yet, and has nothing to store
            volume.phase = Phase.LEAVING
            return Leave(volume.name, 0.0 if starting else STOPPING_SECONDS)
        volume.phase = Phase.STOPPING
        return Stop(volume.name, STOPPING_SECONDS)

    def _replace(self, volume: Volume, attach: frames.Attach) -> list[Action]:
        successor = Volume(attach)
        successor.inherit(volume)
        return self._start(successor)

    def _start(self, volume: Volume) -> list[Action]:
        """Start a worker for the volume, on its connection if one is held."""
        self.running[volume.name] = volume
        volume.phase, volume.failure = Phase.STARTING, None
        volume.inflight = volume.dirty_bytes = volume.oldest_ms = 0
        given = volume.document
        if volume.init is not None:
            given = {**given, "init": volume.init, "resume": volume.resume, "check": volume.check}
        return [Start(volume.name, volume.generation, volume.mountpoint, given, volume.init is not None)]

    def due(self, name: str) -> list[Action]:
        """The delay of a `StartLater` is over."""
        volume = self.running.get(name)
        if volume is None or volume.phase is not Phase.WAITING or self.terminating:
            return []
        return self._start(volume)

    def _quiesce(self, quiesce: frames.Quiesce) -> list[Action]:
        if quiesce.generation < self._newest.get(quiesce.volume, 0):
            return [Log(f"QUIESCE of volume {quiesce.volume} is of an older generation and dropped.")]
        volume = self.running.get(quiesce.volume)
        if volume is None or volume.phase is not Phase.READY:
            return [Send(frames.flushed(quiesce.volume, quiesce.generation, 0))]
        volume.quiescing = True
        return [Command(volume.name, {"command": "quiesce", "deadline_ms": quiesce.deadline_ms})]

    def _detach(self, detach: frames.Detach) -> list[Action]:
        if detach.generation < self._newest.get(detach.volume, 0):
            return [Log(f"DETACH of volume {detach.volume} is of an older generation and dropped.")]
        volume = self.running.get(detach.volume)
        # Published again, it may begin with generation 1.
        self._newest.pop(detach.volume, None)
        if volume is None or volume.phase is Phase.WAITING:
            self.running.pop(detach.volume, None)
            mountpoint = f"volumes/{detach.volume}" if volume is None else volume.mountpoint
            clear: list[Action] = [ClearMount(mountpoint)] if mountpoint else []
            dropped: list[Action] = [Drop(detach.volume)] if volume is not None else []
            return [*clear, *dropped, Send(frames.detached(detach.volume, detach.generation))]
        volume.detaching = True
        volume.successor = volume.queued = None
        if volume.phase in (Phase.STOPPING, Phase.FAILED):
            return []
        volume.phase = Phase.STOPPING
        return [Stop(volume.name, STOPPING_SECONDS)]

    def _update(self, update: frames.Update) -> list[Action]:
        volume = self.running.get(update.volume)
        if volume is None or update.generation != volume.generation or self.terminating:
            return [Log(f"UPDATE of volume {update.volume} is dropped: it is not served in that generation.")]
        if volume.phase is not Phase.READY or volume.former is not None:
            volume.queued = update
            return []
        changed = frames.Attach(
            volume.name, volume.generation, volume.mountpoint, volume.read_only, update.options, update.secrets
        )
        new = document(changed)
        if new == volume.document:  # a node service that was started again does not know what it told us before
            return [Send(frames.ready(volume.name, volume.generation))]
        if volume.init is None:
            message = "this client cannot change options or credentials while it serves; restart the pod"
            return [Send(frames.error(volume.name, volume.generation, CANNOT_CHANGE, message, False))]
        volume.former, volume.document = volume.document, new
        return [Log(f"Volume {volume.name} goes on with other options or credentials."), self._end_worker(volume)]

    # --- workers -----------------------------------------------------------------------------------------------

    def worker_said(self, name: str, event: dict[str, Any], now: float = 0.0) -> list[Action]:
        """A JSON line of the volume's worker, at monotonic time `now`."""
        volume = self.running[name]
        match event.get("event"):
            case "ready":
                return self._ready(volume, event, now)
            case "error":
                return self._said_error(volume, event)
            case "beat":
                volume.inflight, volume.dirty_bytes = count(event, "inflight"), count(event, "dirty_bytes")
                volume.oldest_ms = count(event, "oldest_ms")
                repeated, volume.repeated = volume.repeated, count(event, "repeated")
                return [State(name, volume.state())] if volume.repeated != repeated and self.proto >= 2 else []
            case "flushed":
                volume.dirty_bytes = count(event, "dirty_bytes")
                if self.ending is not None:
                    return self._without_workers(self.ending.flushed(self.running, name))
                if not volume.quiescing:
                    return []
                volume.quiescing = False
                return [Send(frames.flushed(name, volume.generation, volume.dirty_bytes))]
            case other:
                return [Log(f"Volume {name}: the worker's event {str(other)[:40]!r} is unknown and ignored.")]

    def _ready(self, volume: Volume, event: dict[str, Any], now: float) -> list[Action]:
        if volume.phase is not Phase.STARTING:
            return []
        name, taken_over = volume.name, volume.init is not None
        volume.phase, volume.sid = Phase.READY, count(event, "sid")
        actions: list[Action] = []
        if init_of(event) is not None:
            volume.init, volume.resume = init_of(event), True
            actions.append(Adopt(name))
        if volume.is_restricted and not volume.resends:
            # The requests that a dead worker had read only fail when nobody holds what they were read from.
            volume.init = None
            actions.append(Drop(name))
        succeeded = volume.ended_at > 0
        if succeeded:
            volume.stall_ms = int((now - volume.ended_at) * 1000)
            actions.append(Log(f"Volume {name} was taken over after {volume.stall_ms} ms."))
        elif taken_over:
            actions.append(Log(f"Volume {name} is served (generation {volume.generation})."))
        else:
            actions.append(Log(f"Volume {name} is mounted (generation {volume.generation})."))
        if not volume.announced or volume.former is not None:
            volume.announced = True
            actions.append(Send(frames.ready(name, volume.generation)))
        volume.ended_at, volume.ready_at, volume.former = 0.0, max(now, 1e-9), None
        volume.proven = volume.document
        actions += self._deposit(volume)
        if volume.queued is not None:
            update, volume.queued = volume.queued, None
            actions += self._update(update)
        return actions

    def _said_error(self, volume: Volume, event: dict[str, Any]) -> list[Action]:
        code, message = str(event.get("code", "Unknown")), str(event.get("message", ""))
        if volume.phase in (Phase.STOPPING, Phase.LEAVING):
            return [Log(f"Volume {volume.name}, while stopping: {code}: {message}")]
        volume.phase, volume.announced = Phase.FAILED, False
        volume.failure = frames.error(volume.name, volume.generation, code, message, event.get("retryable") is True)
        return [Log(f"Volume {volume.name} failed: {code}: {message}"), Send(volume.failure)]

    def worker_ended(self, name: str, how: str, now: float = 0.0, *, clean: bool = False) -> list[Action]:
        """The volume's worker is gone, at monotonic time `now`; `how` is a phrase such as "with exit status 1". One that ends `clean`
        without being asked found that the connection is no more."""
        volume = self.running[name]
        actions: list[Action] = [Log(f"Volume {name}: its worker ended {how}.")]
        if volume.quiescing:
            volume.quiescing = False
            actions.append(Send(frames.flushed(name, volume.generation, volume.dirty_bytes)))
        if volume.ended_at <= 0 and volume.ready_at > 0:
            volume.ended_at = now
        if self.ending is not None:
            return [*actions, *self._ended_at_the_end(volume)]
        if volume.detaching:
            del self.running[name]
            if volume.mountpoint:
                actions.append(ClearMount(volume.mountpoint))
            return [*actions, Drop(name), Send(frames.detached(name, volume.generation))]
        if volume.successor is not None:
            return [*actions, *self._replace(volume, volume.successor)]
        gone = volume.phase is Phase.READY and clean
        if volume.is_held and not gone:
            return [*actions, *self._succeed(volume, how, now)]
        del self.running[name]
        if volume.init is not None:
            actions.append(Drop(name))
        if volume.phase is Phase.STARTING:
            message = f"The client ended {how} before the volume was mounted; the sidecar's log may say why."
            actions.append(Send(frames.error(name, volume.generation, WORKER_ENDED, message, True)))
        elif volume.phase is Phase.READY:
            actions.append(Send(frames.error(name, volume.generation, MOUNT_LOST, f"the client ended {how}", True)))
        return actions  # a failure was said already, a stop wished

    def _succeed(self, volume: Volume, how: str, now: float) -> list[Action]:
        """The worker is gone, its connection is not: start the next one on it."""
        volume.repeated_before += volume.repeated
        volume.repeated = 0
        if volume.phase is Phase.LEAVING:
            return self._start(volume)
        actions: list[Action] = []
        if volume.former is not None:  # what it was changed to does not work
            if volume.failure is None:
                message = f"the client ended {how} with the changed options or credentials"
                actions.append(Send(frames.error(volume.name, volume.generation, WORKER_ENDED, message, True)))
            volume.document, volume.former = volume.former, None
            return [*actions, *self._start(volume)]
        volume.restarts += 1
        delay = volume.delay(now)
        if not delay:
            return self._start(volume)
        volume.phase = Phase.WAITING
        return [Log(f"Volume {volume.name} is served again in {delay:g} s."), StartLater(volume.name, delay)]

    def _ended_at_the_end(self, volume: Volume) -> list[Action]:
        assert self.ending is not None
        del self.running[volume.name]
        actions: list[Action] = []
        if not self.ending.keep and not self.ending.asking and volume.mountpoint:
            actions.append(ClearMount(volume.mountpoint))
        if not self.ending.asking:
            actions.append(Drop(volume.name))
        return [*actions, *self._without_workers(self.ending.flushed(self.running, volume.name))]
