"""What the state machine (`pod.py`) has the server do: actions, carried out in order under the pod's lock. Pure records."""

from dataclasses import dataclass, field
from typing import Any

from jfs_csi.control import frames
from jfs_csi.fuse.init import Init


@dataclass(frozen=True, slots=True)
class Send:
    """A frame to the sidecar; with `descriptor_of`, a duplicate of what is kept of that volume's connection goes along."""

    frame: dict[str, Any] = field(repr=False)  # may carry secrets
    descriptor_of: str | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """End the connection; the reason is logged."""

    reason: str


@dataclass(frozen=True, slots=True)
class Store:
    """Write generation and readiness of a volume to its state file."""

    volume: str
    generation: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Mount:
    """Make a fresh FUSE mount for the volume (restricted mode), on top of what lies there; then call `mounted`."""

    volume: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the descriptor that came with the frame, if it is of the volume's connection."""

    volume: str
    init: Init


@dataclass(frozen=True, slots=True)
class Notify:
    """An event on the pod and on the PersistentVolume. The message holds no secret."""

    reason: str
    volume: str
    message: str


@dataclass(frozen=True, slots=True)
class Account:
    """A volume's file system was taken over by a new process: for the metrics and the state file."""

    volume: str
    restarts: int
    stall_seconds: float
    replayed: int


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Call `retry_due(volume, generation)` after so many seconds."""

    volume: str
    generation: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Answered:
    """The sidecar answered a QUIESCE or a DETACH."""

    frame: frames.Flushed | frames.Detached


@dataclass(frozen=True, slots=True)
class DecideEnd:
    """Answer ENDING: look whether other containers of the pod live."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """A frame was dropped; the reason is logged."""

    reason: str


Action = Send | Close | Store | Mount | Keep | Notify | Account | RetryAfter | Answered | DecideEnd | Ignored
