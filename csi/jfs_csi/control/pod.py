"""State machine of one pod's volumes and its sidecar's session; everything about the protocol is decided here.

`PodControl` is told what happens (a frame came, the connection ended, a volume was published, a retry is due) and
returns actions for `server.py` to carry out *in order*; it does no I/O and is given its clock.

Rules:
- one session at a time: a second sidecar is refused while the first one's connection lives, and not heard before the first
  one's process is dead (the server proves it); the same session reconnecting replaces its own older connection;
- a generation rises with each ATTACH and is stored before the frame leaves; frames of other generations are dropped;
- nothing is attached without secrets: after a restart of the node service they come with the kubelet's next publish;
- a volume that the sidecar reports as attached is taken as it is. One that was ready and is not reported has lost its
  server: if its connection is kept and lives, the new one gets the descriptor and the application only waits; else the
  mount is lost, and a fresh one lies on top of it;
- in restricted mode the mount is ours: a volume is attached with a descriptor or not at all;
- every failure is retried with growing delays: from a second on if retryable, else from five seconds on up to a minute (a
  file system is about to be formatted, a password is set right on the other side), at once if the kubelet brings other
  secrets or options.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from jfs_api import names

from jfs_csi.control import frames, watching
from jfs_csi.control.actions import (
    Account,
    Action,
    Answered,
    Close,
    DecideEnd,
    Ignored,
    Keep,
    Mount,
    Notify,
    RetryAfter,
    Send,
    Store,
)
from jfs_csi.control.attachment import Attachment, Phase
from jfs_csi.control.redaction import redact
from jfs_csi.fuse.init import Handover

RETRY_FIRST = 1.0  # seconds
RETRY_LONGEST = 30.0
RETRY_UNCORRECTED_FIRST = 5.0
RETRY_UNCORRECTED_LONGEST = 60.0
MOUNT_LOST = "MountLost"


class PodControl:
    """All state of one pod's control socket. Not thread-safe: used under the pod's lock.

    `kept(volume)` gives the handover of a live connection whose descriptor the node service has, or None.
    """

    def __init__(
        self,
        node: str,
        pod_uid: str,
        kept: Callable[[str], Handover | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node, self.pod_uid, self._kept, self._clock = node, pod_uid, kept, clock
        self.volumes: dict[str, Attachment] = {}
        self.session: str | None = None
        self.ending = False  # the sidecar said so; what follows is no surprise
        self.proto = 1  # of the session
        # What the session said in HELLO about volumes that are not published here (yet).
        self._reported: dict[str, int] = {}
        # Last generations of volumes unpublished while the sidecar lived: it drops what is not newer.
        self._former: dict[str, int] = {}

    # --- volumes -----------------------------------------------------------------------------------------------

    def restore(
        self,
        volume: str,
        read_only: bool,
        options: tuple[str, ...],
        generation: int,
        ready: bool,
        restricted: bool = False,
    ) -> None:
        """A volume of a state file, after a restart of the node service: no secrets, no session yet."""
        self.volumes[volume] = Attachment(
            volume, read_only, options, None, generation, restricted, was_ready=ready, away_since=self._clock()
        )

    def published(
        self,
        volume: str,
        read_only: bool,
        options: tuple[str, ...],
        secrets: dict[str, Any],
        generation: int = 0,
        restricted: bool = False,
    ) -> list[Action]:
        """NodePublishVolume was called: for the first time, or again with perhaps newer secrets."""
        attachment = self.volumes.get(volume)
        if attachment is None:
            generation = max(generation, self._former.pop(volume, 0))
            attachment = self.volumes[volume] = Attachment(volume, generation=generation)
        before = (attachment.secrets, attachment.options, attachment.read_only)
        # After a restart of ours nobody knows what the sidecar works with: it is told, and only it knows if that is new.
        known = attachment.secrets is not None
        changed = before != (secrets, options, read_only)
        attachment.secrets, attachment.options, attachment.read_only = secrets, options, read_only
        attachment.restricted = restricted
        if volume in self._reported:
            return self._adopt(attachment, self._reported.pop(volume))
        if attachment.phase is Phase.ATTACHING and changed and attachment.tries_on:
            return self._attach(attachment)  # it is trying on with what does not work
        if attachment.phase is Phase.WAITING and (changed or not attachment.failures):
            attachment.failures = 0
            return self._attach(attachment)
        if attachment.phase is Phase.READY and changed:
            attachment.announces = known
            return self._update(attachment)
        return []

    def unpublished(self, volume: str) -> None:
        """NodeUnpublishVolume was called and the sidecar has been asked to let go."""
        attachment = self.volumes.pop(volume, None)
        if attachment is not None:
            self._former[volume] = attachment.generation

    def retry_due(self, volume: str, generation: int) -> list[Action]:
        """The delay of a `RetryAfter` is over; nothing happens if the volume has moved on meanwhile."""
        attachment = self.volumes.get(volume)
        if attachment is None or attachment.generation != generation:
            return []
        if attachment.phase is Phase.READY and attachment.failures:
            return self._update(attachment)
        return self._attach(attachment) if attachment.phase is Phase.WAITING else []

    def mounted(self, volume: str, error: str | None = None) -> list[Action]:
        """The server has carried out `Mount`, or says what went wrong."""
        attachment = self.volumes.get(volume)
        if attachment is None:
            return []
        if error is None and self._kept(volume) is None:
            error = "The mount ended as soon as it was made."
        if error is None:
            return self._attach(attachment)
        return self._failed(attachment, _failure(attachment, error, True))

    def remounted(self, volume: str) -> list[Action]:
        """A fresh mount took the place of the volume's former one: whoever served that serves nothing now."""
        attachment = self.volumes.get(volume)
        if attachment is None or attachment.phase is Phase.WAITING:
            return []
        attachment.phase = Phase.WAITING
        return [*self._lost(attachment, "the node service had to mount it anew"), *self._attach(attachment)]

    def dead(self, volume: str, why: str) -> list[Action]:
        """The volume's connection turned out to have ended while nobody served it."""
        attachment = self.volumes.get(volume)
        if attachment is None or attachment.phase is not Phase.WAITING:
            return []
        return self._lost(attachment, why)

    def away(self, seconds: float) -> list[Action]:
        """So many seconds after the session's end: say so if there is still no sidecar."""
        if self.session is not None:
            return []
        each = [watching.away(one, seconds, self._kept(one.volume) is not None) for one in self.volumes.values()]
        return [action for actions in each for action in actions]

    # --- session -----------------------------------------------------------------------------------------------

    def refusal(self, frame: frames.Hello) -> str | None:
        """Why this HELLO cannot open a session now, in a sentence for both logs; None if it can."""
        versions = set(frame.proto).intersection(frames.VERSIONS)
        if not versions:
            return (
                f"The node service speaks version {frames.VERSIONS[0]} to {frames.VERSIONS[-1]} of the control protocol"
                f" and the sidecar (version {frame.version}) does not: use images of the same release."
            )
        if max(versions) < 2 and any(attachment.restricted for attachment in self.volumes.values()):
            return (
                f"The sidecar (version {frame.version}) does not know restricted mode: use a sidecar image of the same"
                " release as the node service, or mode privileged."
            )
        if self.session is not None and self.session != frame.session:
            return "Another sidecar of this pod is connected; there is one at a time."
        return None

    def hello(self, frame: frames.Hello) -> list[Action]:
        """First frame of a connection. The caller has authenticated the peer. Without a Close in the actions the
        connection is the session from now on.
        """
        message = self.refusal(frame)
        if message is not None:
            return [Send(frames.refused(message)), Close(message)]
        self.proto = max(set(frame.proto).intersection(frames.VERSIONS))
        self.session, self.ending = frame.session, False
        actions: list[Action] = [Send(frames.welcome(self.proto, self.node, self.pod_uid))]
        reported = dict(frame.attached)
        self._reported = {volume: gen for volume, gen in reported.items() if volume not in self.volumes}
        for attachment in self.volumes.values():
            attachment.updating = False
            generation = reported.get(attachment.volume)
            if generation is None:  # a sidecar that has just started counts from 0
                attachment.succession = frames.Succession(attachment.volume, 0, 0, 0, 0, 0)
            if generation is not None and generation >= attachment.generation:
                actions += self._adopt(attachment, generation)
                continue
            attachment.phase = Phase.WAITING
            if self._kept(attachment.volume) is None:
                actions += self._lost(attachment, "the sidecar was started again and had to mount it anew")
            attachment.failures = 0
            actions += self._attach(attachment)
        return actions

    def disconnected(self) -> None:
        """The session's connection ended. Mounts of a sidecar that still runs stay: its next HELLO lists them."""
        self.session = None
        self._reported = {}
        for attachment in self.volumes.values():
            if attachment.phase is Phase.READY:
                attachment.away_since = self._clock()
            attachment.phase = Phase.WAITING
            attachment.updating = False

    def frame(self, frame: frames.Incoming) -> list[Action]:
        """A frame after HELLO."""
        match frame:
            case frames.Hello():
                return [Close("A second HELLO came on one connection.")]
            case frames.Beat():
                return [action for beat in frame.volumes for action in self._beat(beat)]
            case frames.Flushed() | frames.Detached():
                return [Answered(frame)]
            case frames.Ending():
                self.ending = True
                return [DecideEnd()]
            case frames.Ready() | frames.Failed() | frames.Deposit() | frames.Succession():
                attachment = self.volumes.get(frame.volume)
                if attachment is None or attachment.generation != frame.generation:
                    return [Ignored(f"{type(frame).__name__} of volume {frame.volume} is of an older generation.")]
                match frame:
                    case frames.Ready():
                        return self._ready(attachment)
                    case frames.Failed():
                        return self._failed(attachment, frame)
                    case frames.Deposit():
                        return [Keep(attachment.volume, frame.init)]
                    case frames.Succession():
                        return watching.succeeded(attachment, frame)

    # --- transitions -------------------------------------------------------------------------------------------

    def _attach(self, attachment: Attachment) -> list[Action]:
        if self.session is None or attachment.secrets is None:
            return []
        handover = self._kept(attachment.volume) if self.proto >= 2 else None
        if attachment.restricted and self.proto < 2:
            return self._failed(attachment, _failure(attachment, "The sidecar does not know restricted mode.", False))
        if attachment.restricted and handover is None:
            return [Mount(attachment.volume)]
        attachment.generation += 1
        attachment.phase, attachment.tries_on = Phase.ATTACHING, False
        attachment.beat = None
        attachment.resumed = handover is not None and handover.resume
        attachment.told = (attachment.options, attachment.secrets)
        frame = frames.attach(
            attachment.volume,
            attachment.generation,
            "" if attachment.restricted else f"{names.CONTROL_VOLUMES}/{attachment.volume}",
            attachment.read_only,
            attachment.options,
            attachment.secrets,
            names.RESTRICTED if attachment.restricted else names.PRIVILEGED,
        )
        if self.proto >= 2:
            frame = frames.handing_over(frame, handover)
        return [
            Store(attachment.volume, attachment.generation, attachment.resumed and attachment.was_ready),
            Send(frame, attachment.volume if handover is not None else None),
        ]

    def _update(self, attachment: Attachment) -> list[Action]:
        """Hand other options or credentials to a sidecar that serves the volume; older ones get them when they attach again."""
        if self.proto < 2 or self.session is None or attachment.secrets is None:
            return []
        attachment.updating = True
        attachment.told = (attachment.options, attachment.secrets)
        frame = frames.update(attachment.volume, attachment.generation, attachment.options, attachment.secrets)
        return [Send(frame)]

    def _adopt(self, attachment: Attachment, generation: int) -> list[Action]:
        attachment.generation = generation
        attachment.phase, attachment.tries_on = Phase.READY, False
        attachment.was_ready = True
        attachment.failures = 0
        attachment.away_since = None
        return [Store(attachment.volume, generation, True), *watching.recovered(attachment)]

    def _ready(self, attachment: Attachment) -> list[Action]:
        volume = attachment.volume
        if attachment.phase is Phase.READY:
            if not attachment.updating:
                return []
            attachment.updating, attachment.failures, attachment.failure = False, 0, ""
            if not attachment.announces:
                return []
            return [
                Notify(names.EVENT_UPDATED, volume, f"Volume {volume} works with its options and credentials of now.")
            ]
        since, resumed = attachment.away_since, attachment.resumed and attachment.was_ready
        lost, attachment.lost = attachment.lost, False
        actions = self._adopt(attachment, attachment.generation)
        attachment.failure = ""
        if attachment.told not in (None, (attachment.options, attachment.secrets)):
            attachment.announces = True  # the kubelet brought something new while it started
            actions += self._update(attachment)
        if lost or not resumed:
            return [*actions, watching.mounted(volume, again=lost)]
        stall = 0.0 if since is None else self._clock() - since
        message = f"A new sidecar serves volume {volume}; what was open stays open. Operations waited {stall:.1f} s."
        return [*actions, Account(volume, 1, stall, 0), Notify(names.EVENT_SIDECAR_RESTARTED, volume, message)]

    def _beat(self, beat: frames.VolumeBeat) -> list[Action]:
        attachment = self.volumes.get(beat.volume)
        if attachment is None or attachment.generation != beat.generation:
            return []
        return watching.beaten(attachment, beat)

    def _failed(self, attachment: Attachment, frame: frames.Failed) -> list[Action]:
        message = redact(frame.message, attachment.secrets)
        attachment.failures += 1
        attachment.failure = message
        if attachment.updating and frame.code != MOUNT_LOST:
            attachment.updating = False
            text = f"Volume {attachment.volume} works on as it was, its new options or credentials do not: {message}"
            actions: list[Action] = [Notify(names.EVENT_MOUNT_FAILED, attachment.volume, text)]
        elif self._tries_on(attachment, frame):
            if attachment.phase is Phase.READY:
                attachment.away_since = self._clock()
            attachment.phase, attachment.resumed, attachment.tries_on = Phase.ATTACHING, True, True
            code = redact(frame.code, attachment.secrets)
            text = f"Volume {attachment.volume} is not served ({code}), its operations wait: {message}"
            return [Notify(names.EVENT_MOUNT_FAILED, attachment.volume, text)]
        else:
            if attachment.phase is Phase.READY:
                attachment.away_since = self._clock()
            attachment.phase = Phase.WAITING
            if frame.code != MOUNT_LOST:
                code = redact(frame.code, attachment.secrets)
                text = f"Volume {attachment.volume} could not be mounted ({code}): {message}"
                actions = [
                    Store(attachment.volume, attachment.generation, attachment.resumed and attachment.was_ready),
                    Notify(names.EVENT_MOUNT_FAILED, attachment.volume, text),
                ]
            elif self._kept(attachment.volume) is None:
                actions = self._lost(attachment, message)
            elif attachment.failures == 1:
                return self._attach(attachment)  # the connection lives: its operations wait
            else:
                actions = []
        first, longest = RETRY_UNCORRECTED_FIRST, RETRY_UNCORRECTED_LONGEST
        if frame.retryable:
            first, longest = RETRY_FIRST, RETRY_LONGEST
        delay = min(longest, first * 2 ** min(attachment.failures - 1, 10))
        return [*actions, RetryAfter(attachment.volume, attachment.generation, delay)]

    def _tries_on(self, attachment: Attachment, frame: frames.Failed) -> bool:
        """Whether the sidecar itself goes on trying: a successor of a worker that served could not start, and the connection
        lives. It says READY of the same generation when it works."""
        return (
            self.proto >= 2
            and (attachment.phase is Phase.READY or attachment.tries_on)
            and attachment.was_ready
            and frame.code != MOUNT_LOST
            and self._kept(attachment.volume) is not None
        )

    def _lost(self, attachment: Attachment, why: str) -> list[Action]:
        if not attachment.was_ready:
            return []
        attachment.was_ready, attachment.lost = False, True
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


def _failure(attachment: Attachment, message: str, retryable: bool) -> frames.Failed:
    """A failure on the node service's side, told like one of the sidecar."""
    return frames.Failed(attachment.volume, attachment.generation, "MountFailed", message, retryable)
