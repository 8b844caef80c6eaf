"""A volume in a pod as its node service sees it: the entry of a JuiceFSNode, from which the operator makes `status.attachments`.

Both ends are here, so that they spell it alike. Who reads believes nothing: an entry that is not of this form is no entry.
Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

# What `state` can be.
ATTACHED: Final = "Attached"  # a sidecar serves it
STALLED: Final = "Stalled"  # one does, or did, and operations have been waiting for long
WAITING: Final = "Waiting"  # the application has it; operations wait for the next sidecar
PENDING: Final = "Pending"  # not served yet

# A node service writes its JuiceFSNode at least so often; one that has not changed for the other time is of a node that is gone.
RENEW_SECONDS: Final = 120.0
FORGET_SECONDS: Final = 400.0

MOST_OF_NODE: Final = 500
MOST_OF_VOLUME: Final = 100
LONGEST_MESSAGE: Final = 256


@dataclass(frozen=True, slots=True)
class Attachment:
    """`volume` is the PersistentVolume; `last_stall_ms` how long operations waited at the last takeover, None before the first;
    `since` (RFC 3339) when the mount was first served, empty before. `message` says what is wrong, without secrets."""

    volume: str
    namespace: str
    pod: str
    pod_uid: str
    mode: str
    state: str
    generation: int = 0
    restarts: int = 0
    last_stall_ms: int | None = None
    since: str = ""
    message: str = ""

    def document(self) -> dict[str, Any]:
        """As an entry of a JuiceFSNode; what is empty is left out."""
        fields = {
            "volume": self.volume,
            "namespace": self.namespace,
            "pod": self.pod,
            "podUID": self.pod_uid,
            "mode": self.mode,
            "state": self.state,
            "generation": self.generation,
            "restarts": self.restarts,
            "lastStallMs": self.last_stall_ms,
            "since": self.since,
            "message": self.message[:LONGEST_MESSAGE],
        }
        return {name: value for name, value in fields.items() if value not in (None, "")}

    @classmethod
    def read(cls, entry: Any) -> Self | None:
        """The entry of a JuiceFSNode, or None if it is none."""
        if not isinstance(entry, dict):
            return None
        texts = [entry.get(name, "") for name in ("volume", "namespace", "pod", "podUID", "mode", "state")]
        more = [entry.get(name, "") for name in ("since", "message")]
        generation, restarts = entry.get("generation", 0), entry.get("restarts", 0)
        stall = entry.get("lastStallMs")
        if not all(isinstance(text, str) for text in (*texts, *more)) or not all(texts):
            return None
        if not all(type(number) is int for number in (generation, restarts)) or not (
            stall is None or type(stall) is int
        ):
            return None
        volume, namespace, pod, pod_uid, mode, state = texts
        return cls(volume, namespace, pod, pod_uid, mode, state, generation, restarts, stall, *more)


def of_node(attachments: Iterable[Attachment]) -> list[dict[str, Any]]:
    """The entries of one node in a fixed order, those that are not well first, in case there are too many."""
    return [entry.document() for entry in sorted(attachments, key=_order)[:MOST_OF_NODE]]


def of_volume(attachments: Iterable[tuple[str, Attachment]]) -> list[dict[str, Any]]:
    """`status.attachments` of a volume from (node, entry), in the same order."""
    ordered = sorted(attachments, key=lambda pair: _order(pair[1]))[:MOST_OF_VOLUME]
    documents = [{**entry.document(), "node": node} for node, entry in ordered]
    # The volume knows its own name and namespace.
    return [{k: v for k, v in document.items() if k not in ("volume", "namespace")} for document in documents]


def _order(entry: Attachment) -> tuple[bool, str, str, str]:
    return entry.state == ATTACHED, entry.namespace, entry.pod, entry.volume
