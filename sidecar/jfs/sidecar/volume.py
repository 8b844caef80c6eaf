"""One volume of the pod, as the supervisor knows it: its document, its FUSE connection, its worker's phase. No behaviour beyond
small arithmetic. (No dataclass: importing that costs three megabytes in every pod.)"""

from enum import Enum
from typing import Any

from jfs.sidecar import frames

_HAS_RESEND = 1 << 39  # INIT flag (linux/fuse.h): unanswered requests can be had again
# A worker that lived so long since it was ready did not die of what it was given.
STEADY_SECONDS = 0.25
_AT_ONCE = 5  # deaths in a row that are followed at once
_BACK_OFF_FIRST, _BACK_OFF_LONGEST = 0.1, 2.0

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
    LEAVING = "leaving"  # for a successor on the same connection
    WAITING = "waiting"  # no worker; the next one is due later


class Volume:
    """See the module. `init` is what the held FUSE connection's INIT settled, None when none is held."""

    __slots__ = (
        "announced",
        "deaths",
        "detaching",
        "dirty_bytes",
        "document",
        "ended_at",
        "failure",
        "former",
        "generation",
        "inflight",
        "init",
        "mountpoint",
        "name",
        "oldest_ms",
        "phase",
        "proven",
        "queued",
        "quiescing",
        "read_only",
        "ready_at",
        "repeated",
        "repeated_before",
        "restarts",
        "resume",
        "sid",
        "stall_ms",
        "successor",
    )

    def __init__(self, attach: frames.Attach) -> None:
        self.name, self.generation, self.mountpoint = attach.volume, attach.generation, attach.mountpoint
        self.read_only = attach.read_only
        self.document = document(attach)
        self.phase = Phase.STARTING
        self.init = attach.init
        self.resume = attach.resume
        self.inflight = self.dirty_bytes = self.oldest_ms = 0
        self.quiescing = self.detaching = False
        self.announced = False  # READY was said and no ERROR since
        self.successor: frames.Attach | None = None
        self.queued: frames.Update | None = None
        self.former: dict[str, Any] | None = None  # the document to go back to if a changed one does not work
        self.proven: dict[str, Any] | None = None  # the document that a worker served with
        self.failure: dict[str, Any] | None = None  # what the worker said before it ended
        self.sid = self.restarts = self.stall_ms = self.deaths = 0
        self.repeated = self.repeated_before = 0
        self.ready_at = self.ended_at = 0.0

    @property
    def is_restricted(self) -> bool:
        return not self.mountpoint

    @property
    def resends(self) -> bool:
        """Whether requests that a dead worker had read can be answered by the next one."""
        return self.init is not None and bool(self.init.get("flags", 0) & _HAS_RESEND)

    @property
    def is_attached(self) -> bool:
        """Whether applications have it: a worker serves it, or the next one will on the same connection."""
        return self.phase is Phase.READY or self.is_held

    @property
    def is_held(self) -> bool:
        """Whether its connection was served, by a worker of this or of a former sidecar, and is not to be lost with a worker."""
        return self.init is not None and (self.ready_at > 0 or (self.resume and self.resends))

    @property
    def check(self) -> str:
        """How the next worker is to look at the storage (`jfs.mount.storage_check`): operations wait for it meanwhile."""
        if self.former is not None or not self.resume:
            return "full"
        return "none" if self.document == self.proven else "reachable"

    def inherit(self, former: "Volume") -> None:
        """Take over what a former attachment leaves: figures, and the connection unless a newer one was given."""
        self.sid, self.restarts, self.stall_ms = former.sid, former.restarts, former.stall_ms
        self.repeated_before = former.repeated_before + former.repeated
        self.ready_at, self.ended_at, self.proven = former.ready_at, former.ended_at, former.proven
        if self.init is None and former.init is not None:
            self.init, self.resume = former.init, True

    def delay(self, now: float) -> float:
        """The worker ended unasked: seconds until the next one."""
        if self.phase is Phase.READY and now - self.ready_at >= STEADY_SECONDS:
            self.deaths = 0
        self.deaths += 1
        if self.deaths <= _AT_ONCE:
            return 0.0
        return float(min(_BACK_OFF_FIRST * 2 ** min(self.deaths - _AT_ONCE - 1, 10), _BACK_OFF_LONGEST))

    def state(self) -> dict[str, Any]:
        replayed = self.repeated_before + self.repeated
        return frames.state(self.name, self.generation, self.sid, self.restarts, self.stall_ms, replayed)


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


def count(event: dict[str, Any], name: str) -> int:
    """A number of a worker's event; 0 when it is none."""
    value = event.get(name)
    return value if type(value) is int and value >= 0 else 0


def init_of(event: dict[str, Any]) -> dict[str, int] | None:
    """INIT's parameters that came with a descriptor."""
    init = event.get("init")
    if event.get("fds") != 1 or not isinstance(init, dict) or not all(type(value) is int for value in init.values()):
        return None
    return init
