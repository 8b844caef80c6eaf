"""State machine of the sidecar: which volume is at which generation, and what its worker is doing.

Told what happened (a frame, a worker's event or end, the connection's end), it returns actions for `supervisor.py` to
carry out in order. No I/O, no clock.

Rules:
- one worker per volume; a newer generation stops the old worker and starts only after it has ended;
- a frame of an older generation than the newest seen is dropped;
- a dead mount stays until the volume is detached: the next worker mounts on top of it, and by mount propagation its mount
  appears in every container that holds the dead one – also in those that were started after it and have nothing below it;
- a worker that ends without having been asked to is reported (`MountLost` if it had been mounted) and not restarted:
  the node service decides, with a new generation;
- mounts outlive the connection; the next HELLO lists them. What could not be said while disconnected is not said later:
  the node service concludes it from that list.
"""

from enum import Enum
from typing import Any, NamedTuple

from jfs.sidecar import frames

MOUNT_LOST = "MountLost"
WORKER_ENDED = "WorkerEnded"
STOPPING_SECONDS = 10.0  # a worker that is asked to end for a newer generation or a DETACH is killed after this
# Least seconds until the next attempt to connect, after the node service refused us or broke the protocol.
REFUSED_SECONDS = 1.0
BROKEN_SECONDS = 0.2

# The volume's Secret has JuiceFS CSI's keys; the worker's document has these.
_STORAGE_KEYS = (
    ("storage", "storage"),
    ("bucket", "bucket"),
    ("access-key", "access_key"),
    ("secret-key", "secret_key"),
    ("token", "session_token"),
)


class Phase(Enum):
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"  # said so, about to end
    STOPPING = "stopping"


class Volume:
    """A volume with a running worker. (No dataclass: importing that costs three megabytes in every pod.)"""

    __slots__ = (
        "detaching",
        "dirty_bytes",
        "generation",
        "inflight",
        "mountpoint",
        "name",
        "phase",
        "quiescing",
        "successor",
    )

    def __init__(self, name: str, generation: int, mountpoint: str) -> None:
        self.name, self.generation, self.mountpoint = name, generation, mountpoint
        self.phase = Phase.STARTING
        self.inflight = self.dirty_bytes = 0
        self.quiescing = self.detaching = False
        self.successor: frames.Attach | None = None


class Send(NamedTuple):
    frame: dict[str, Any]


class Start(NamedTuple):
    """Run a worker and give it the document (with credentials) on its standard input."""

    volume: str
    generation: int
    mountpoint: str  # relative to the control directory
    document: dict[str, Any]

    def __repr__(self) -> str:
        return f"Start({self.volume!r}, {self.generation})"


class Stop(NamedTuple):
    """SIGTERM to the worker, SIGKILL after so many seconds."""

    volume: str
    seconds: float


class Command(NamedTuple):
    """A line for the worker's standard input."""

    volume: str
    command: dict[str, Any]


class ClearMount(NamedTuple):
    """Take away all that workers left mounted: the volume is not to be mounted any more."""

    mountpoint: str


class Close(NamedTuple):
    """End the connection; `seconds` until the next attempt at the earliest."""

    reason: str
    seconds: float


class Log(NamedTuple):
    text: str


Action = Send | Start | Stop | Command | ClearMount | Close | Log


class Volumes:
    """All volumes of the pod."""

    def __init__(self) -> None:
        self.running: dict[str, Volume] = {}
        self.welcomed = False
        self.terminating = False
        self._newest: dict[str, int] = {}  # generation, of volumes without a worker too

    def attached(self) -> list[tuple[str, int]]:
        """Mounted volumes and their generations, for HELLO."""
        return [(volume.name, volume.generation) for volume in self.running.values() if volume.phase is Phase.READY]

    def beats(self) -> list[tuple[str, int, int, int]]:
        return [
            (volume.name, volume.generation, volume.inflight, volume.dirty_bytes)
            for volume in self.running.values()
            if volume.phase is Phase.READY
        ]

    def disconnected(self) -> None:
        self.welcomed = False

    def terminate(self, seconds: float) -> list[Action]:
        """The pod ends: every worker flushes and unmounts; nothing is attached any more."""
        self.terminating = True
        actions: list[Action] = []
        for volume in self.running.values():
            volume.successor = None
            if volume.phase is not Phase.FAILED:
                volume.phase = Phase.STOPPING
                actions.append(Stop(volume.name, seconds))
        return actions

    # --- frames ------------------------------------------------------------------------------------------------

    def frame(self, frame: frames.Incoming) -> list[Action]:
        """A frame of the node service."""
        if not self.welcomed:
            match frame:
                case frames.Welcome():
                    self.welcomed = True
                    # Frames of former connections cannot come any more; only what runs is to be fenced.
                    self._newest = {name: self._newest[name] for name in self.running if name in self._newest}
                    return [Log(f"Connected to the node service of {frame.node}.")]
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
            case _:
                return [Close(f"A {type(frame).__name__.upper()} frame came out of order.", BROKEN_SECONDS)]

    def _attach(self, attach: frames.Attach) -> list[Action]:
        if attach.generation <= self._newest.get(attach.volume, 0):
            return [Log(f"ATTACH of volume {attach.volume} is of an older generation and dropped.")]
        if self.terminating:
            return [Log(f"ATTACH of volume {attach.volume} is dropped: this sidecar is ending.")]
        self._newest[attach.volume] = attach.generation
        volume = self.running.get(attach.volume)
        if volume is None:
            return self._start(attach)
        volume.successor = attach
        if volume.phase in (Phase.STOPPING, Phase.FAILED):
            return []
        volume.phase = Phase.STOPPING
        return [Stop(volume.name, STOPPING_SECONDS)]

    def _start(self, attach: frames.Attach) -> list[Action]:
        self.running[attach.volume] = Volume(attach.volume, attach.generation, attach.mountpoint)
        return [Start(attach.volume, attach.generation, attach.mountpoint, document(attach))]

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
        if volume is None:
            mountpoint = f"volumes/{detach.volume}"
            return [ClearMount(mountpoint), Send(frames.detached(detach.volume, detach.generation))]
        volume.detaching = True
        volume.successor = None
        if volume.phase in (Phase.STOPPING, Phase.FAILED):
            return []
        volume.phase = Phase.STOPPING
        return [Stop(volume.name, STOPPING_SECONDS)]

    # --- workers -----------------------------------------------------------------------------------------------

    def worker_said(self, name: str, event: dict[str, Any]) -> list[Action]:
        """A JSON line of the volume's worker."""
        volume = self.running[name]
        match event.get("event"):
            case "ready":
                if volume.phase is not Phase.STARTING:
                    return []
                volume.phase = Phase.READY
                return [
                    Log(f"Volume {name} is mounted (generation {volume.generation})."),
                    Send(frames.ready(name, volume.generation)),
                ]
            case "error":
                code, message = str(event.get("code", "Unknown")), str(event.get("message", ""))
                if volume.phase is Phase.STOPPING:
                    return [Log(f"Volume {name}, while stopping: {code}: {message}")]
                volume.phase = Phase.FAILED
                return [
                    Log(f"Volume {name} failed: {code}: {message}"),
                    Send(frames.error(name, volume.generation, code, message, event.get("retryable") is True)),
                ]
            case "beat":
                volume.inflight, volume.dirty_bytes = _count(event, "inflight"), _count(event, "dirty_bytes")
                return []
            case "flushed":
                volume.dirty_bytes = _count(event, "dirty_bytes")
                if not volume.quiescing:
                    return []
                volume.quiescing = False
                return [Send(frames.flushed(name, volume.generation, volume.dirty_bytes))]
            case other:
                return [Log(f"Volume {name}: the worker's event {str(other)[:40]!r} is unknown and ignored.")]

    def worker_ended(self, name: str, how: str) -> list[Action]:
        """The volume's worker is gone; `how` is a phrase such as "with exit status 1"."""
        volume = self.running.pop(name)
        actions: list[Action] = [Log(f"Volume {name}: its worker ended {how}.")]
        if volume.detaching or self.terminating:
            actions.append(ClearMount(volume.mountpoint))
        match volume.phase:
            case Phase.STARTING:
                message = f"The client ended {how} before the volume was mounted; the sidecar's log may say why."
                actions.append(Send(frames.error(name, volume.generation, WORKER_ENDED, message, True)))
            case Phase.READY:
                message = f"the client ended {how}"
                actions.append(Send(frames.error(name, volume.generation, MOUNT_LOST, message, True)))
            case Phase.FAILED | Phase.STOPPING:
                pass  # said already, or wished
        if volume.quiescing:
            actions.append(Send(frames.flushed(name, volume.generation, volume.dirty_bytes)))
        if volume.detaching:
            actions.append(Send(frames.detached(name, volume.generation)))
        if volume.successor is not None and not self.terminating:
            actions += self._start(volume.successor)
        return actions


def document(attach: frames.Attach) -> dict[str, Any]:
    """What the worker reads as its first line: the mount, with credentials. `mountpoint` is completed by the supervisor."""
    secrets = attach.secrets
    storage = {ours: str(secrets[key]) for key, ours in _STORAGE_KEYS if secrets.get(key)}
    envs = secrets.get("envs")
    result: dict[str, Any] = {
        "meta_url": str(secrets.get("metaurl", "")),
        "mountpoint": attach.mountpoint,
        "read_only": attach.read_only,
        "options": list(attach.options),
        "envs": {str(name): str(value) for name, value in envs.items()} if isinstance(envs, dict) else {},
        "name": secrets.get("name") or None,
        "metrics": None,
    }
    if storage:
        result["storage"] = storage
    if secrets.get("passphrase"):
        result["passphrase"] = str(secrets["passphrase"])
    return result


def _count(event: dict[str, Any], name: str) -> int:
    value = event.get(name)
    return value if type(value) is int and value >= 0 else 0
