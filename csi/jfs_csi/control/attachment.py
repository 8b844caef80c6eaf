"""One data volume of a pod as the control socket sees it: the record that `pod.py` changes and nobody else. Pure."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from jfs_api import attachments

from jfs_csi.control import frames


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
    restricted: bool = False
    phase: Phase = Phase.WAITING
    was_ready: bool = False  # the application may be running on this mount
    updating: bool = False  # UPDATE is out
    told: tuple[tuple[str, ...], dict[str, Any] | None] | None = field(
        default=None, repr=False
    )  # what the sidecar was told last
    announces: bool = False  # the UPDATE brings something new
    tries_on: bool = False  # a worker died, its successor does not start yet, and the sidecar goes on trying by itself
    failures: int = 0
    failure: str = ""
    resumed: bool = False  # the ATTACH that is out continues a connection that was served before
    away_since: float | None = None  # nobody serves the mount, on the clock given
    stalled: bool = False  # said so
    lost: bool = False  # the mount was, and nothing has taken its place yet
    beat: frames.VolumeBeat | None = None
    succession: frames.Succession | None = None

    @property
    def state(self) -> str:
        """In the words of a JuiceFSNode."""
        if self.stalled:
            return attachments.STALLED
        if self.phase is Phase.READY:
            return attachments.ATTACHED
        return attachments.WAITING if self.was_ready else attachments.PENDING
