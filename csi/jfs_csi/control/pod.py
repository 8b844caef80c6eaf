"""State machine of one pod's volumes and its sidecar's session; everything about the protocol is decided here.

`PodControl` is told what happens (a frame came, the connection ended, a volume was published, a retry is due) and
returns actions for `server.py` to carry out *in order*; it does no I/O and knows no clock.

Rules:
- one session at a time: a second sidecar is refused while the first one's connection lives; the same session reconnecting
  replaces its own older connection;
- a generation rises with each ATTACH and is stored before the frame leaves; frames of other generations are dropped;
- nothing is attached without secrets: after a restart of the node service they come with the kubelet's next publish;
- a volume that the sidecar reports as attached is taken as it is; one that was ready and is not reported was lost;
- every failure is retried with growing delays: from a second on if retryable, else from five seconds on up to a minute (a
  file system is about to be formatted, a password is set right on the other side), at once if the kubelet brings other
  secrets or options.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from jfs_api import names

from jfs_csi.control import frames
from jfs_csi.control.redaction import redact

RETRY_FIRST = 1.0  # seconds
RETRY_LONGEST = 30.0
RETRY_UNCORRECTED_FIRST = 5.0
RETRY_UNCORRECTED_LONGEST = 60.0
MOUNT_LOST = "MountLost"


class Phase(Enum):
    WAITING = "waiting"  # for a session, for secrets, or for a retry
    ATTACHING = "attaching"  # ATTACH is out
    READY = "ready"


@dataclass(slots=True)
class Attachment:
    """One data volume of the pod, as far as the control socket is concerned."""

    volume: str
    read_only: bool = False
    options: tuple[str, ...] = ()
    secrets: dict[str, Any] | None = field(default=None, repr=False)
    generation: int = 0
    phase: Phase = Phase.WAITING
    was_ready: bool = False  # the application may be running on this mount
    failures: int = 0
    failure: str = ""
    beat: frames.VolumeBeat | None = None


@dataclass(frozen=True, slots=True)
class Send:
    frame: dict[str, Any] = field(repr=False)  # may carry secrets


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
class Notify:
    """An event on the pod and on the PersistentVolume. The message holds no secret."""

    reason: str
    volume: str
    message: str


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
class Ignored:
    """A frame was dropped; the reason is logged."""

    reason: str


Action = Send | Close | Store | Notify | RetryAfter | Answered | Ignored


class PodControl:
    """All state of one pod's control socket. Not thread-safe: used under the pod's lock."""

    def __init__(self, node: str, pod_uid: str) -> None:
        self.node, self.pod_uid = node, pod_uid
        self.volumes: dict[str, Attachment] = {}
        self.session: str | None = None
        # What the session said in HELLO about volumes that are not published here (yet).
        self._reported: dict[str, int] = {}
        # Last generations of volumes unpublished while the sidecar lived: it drops what is not newer.
        self._former: dict[str, int] = {}

    # --- volumes -----------------------------------------------------------------------------------------------

    def restore(self, volume: str, read_only: bool, options: tuple[str, ...], generation: int, ready: bool) -> None:
        """A volume of a state file, after a restart of the node service: no secrets, no session yet."""
        self.volumes[volume] = Attachment(volume, read_only, options, None, generation, was_ready=ready)

    def published(
        self, volume: str, read_only: bool, options: tuple[str, ...], secrets: dict[str, Any], generation: int = 0
    ) -> list[Action]:
        """NodePublishVolume was called: for the first time, or again with perhaps newer secrets."""
        attachment = self.volumes.get(volume)
        if attachment is None:
            generation = max(generation, self._former.pop(volume, 0))
            attachment = self.volumes[volume] = Attachment(volume, generation=generation)
        before = (attachment.secrets, attachment.options, attachment.read_only)
        changed = before != (secrets, options, read_only)
        attachment.secrets, attachment.options, attachment.read_only = secrets, options, read_only
        if volume in self._reported:
            return self._adopt(attachment, self._reported.pop(volume))
        if attachment.phase is Phase.WAITING and (changed or not attachment.failures):
            attachment.failures = 0
            return self._attach(attachment)
        return []

    def unpublished(self, volume: str) -> None:
        """NodeUnpublishVolume was called and the sidecar has been asked to let go."""
        attachment = self.volumes.pop(volume, None)
        if attachment is not None:
            self._former[volume] = attachment.generation

    def retry_due(self, volume: str, generation: int) -> list[Action]:
        """The delay of a `RetryAfter` is over; nothing happens if the volume has moved on meanwhile."""
        attachment = self.volumes.get(volume)
        if attachment is None or attachment.phase is not Phase.WAITING or attachment.generation != generation:
            return []
        return self._attach(attachment)

    # --- session -----------------------------------------------------------------------------------------------

    def hello(self, frame: frames.Hello) -> list[Action]:
        """First frame of a connection. The caller has authenticated the peer. Without a Close in the actions the
        connection is the session from now on.
        """
        if frames.PROTO not in frame.proto:
            message = (
                f"The node service speaks version {frames.PROTO} of the control protocol and the sidecar"
                f" (version {frame.version}) does not: use images of the same release."
            )
            return [Send(frames.refused(message)), Close(message)]
        if self.session is not None and self.session != frame.session:
            message = "Another sidecar of this pod is connected; there is one at a time."
            return [Send(frames.refused(message)), Close(message)]
        self.session = frame.session
        actions: list[Action] = [Send(frames.welcome(self.node, self.pod_uid))]
        reported = dict(frame.attached)
        self._reported = {volume: gen for volume, gen in reported.items() if volume not in self.volumes}
        for attachment in self.volumes.values():
            generation = reported.get(attachment.volume)
            if generation is not None and generation >= attachment.generation:
                actions += self._adopt(attachment, generation)
            else:
                actions += self._lost(attachment, "the sidecar was started again and had to mount it anew")
                attachment.failures = 0
                actions += self._attach(attachment)
        return actions

    def disconnected(self) -> None:
        """The session's connection ended. Mounts of a sidecar that still runs stay: its next HELLO lists them."""
        self.session = None
        self._reported = {}
        for attachment in self.volumes.values():
            attachment.phase = Phase.WAITING

    def frame(self, frame: frames.Incoming) -> list[Action]:
        """A frame after HELLO."""
        match frame:
            case frames.Hello():
                return [Close("A second HELLO came on one connection.")]
            case frames.Beat():
                for beat in frame.volumes:
                    attachment = self.volumes.get(beat.volume)
                    if attachment is not None and attachment.generation == beat.generation:
                        attachment.beat = beat
                return []
            case frames.Flushed() | frames.Detached():
                return [Answered(frame)]
            case frames.Ready() | frames.Failed():
                attachment = self.volumes.get(frame.volume)
                if attachment is None or attachment.generation != frame.generation:
                    return [Ignored(f"{type(frame).__name__} of volume {frame.volume} is of an older generation.")]
                return self._ready(attachment) if isinstance(frame, frames.Ready) else self._failed(attachment, frame)

    # --- transitions -------------------------------------------------------------------------------------------

    def _attach(self, attachment: Attachment) -> list[Action]:
        if self.session is None or attachment.secrets is None:
            return []
        attachment.generation += 1
        attachment.phase = Phase.ATTACHING
        attachment.beat = None
        mountpoint = f"{names.CONTROL_VOLUMES}/{attachment.volume}"
        return [
            Store(attachment.volume, attachment.generation, False),
            Send(
                frames.attach(
                    attachment.volume,
                    attachment.generation,
                    mountpoint,
                    attachment.read_only,
                    attachment.options,
                    attachment.secrets,
                )
            ),
        ]

    def _adopt(self, attachment: Attachment, generation: int) -> list[Action]:
        attachment.generation = generation
        attachment.phase = Phase.READY
        attachment.was_ready = True
        attachment.failures = 0
        return [Store(attachment.volume, generation, True)]

    def _ready(self, attachment: Attachment) -> list[Action]:
        if attachment.phase is Phase.READY:
            return []
        actions = self._adopt(attachment, attachment.generation)
        attachment.failure = ""
        return [*actions, Notify(names.EVENT_MOUNTED, attachment.volume, f"Volume {attachment.volume} is mounted.")]

    def _failed(self, attachment: Attachment, frame: frames.Failed) -> list[Action]:
        message = redact(frame.message, attachment.secrets)
        attachment.phase = Phase.WAITING
        attachment.failures += 1
        attachment.failure = message
        if frame.code == MOUNT_LOST:
            actions = self._lost(attachment, message)
        else:
            actions = [
                Store(attachment.volume, attachment.generation, False),
                Notify(
                    names.EVENT_MOUNT_FAILED,
                    attachment.volume,
                    f"Volume {attachment.volume} could not be mounted ({redact(frame.code, attachment.secrets)}):"
                    f" {message}",
                ),
            ]
        first, longest = RETRY_UNCORRECTED_FIRST, RETRY_UNCORRECTED_LONGEST
        if frame.retryable:
            first, longest = RETRY_FIRST, RETRY_LONGEST
        delay = min(longest, first * 2 ** min(attachment.failures - 1, 10))
        return [*actions, RetryAfter(attachment.volume, attachment.generation, delay)]

    def _lost(self, attachment: Attachment, why: str) -> list[Action]:
        if not attachment.was_ready:
            return []
        attachment.was_ready = False
        return [
            Store(attachment.volume, attachment.generation, False),
            Notify(
                names.EVENT_MOUNT_LOST,
                attachment.volume,
                f"The mount of volume {attachment.volume} was lost: {why}. Files that were open must be opened again.",
            ),
        ]

    def ready_volumes(self) -> Iterable[str]:
        return [attachment.volume for attachment in self.volumes.values() if attachment.phase is Phase.READY]
