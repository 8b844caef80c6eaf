"""The pods that a rollout concerns: which image each has and should have, and how its sidecar is. Pure.

The image that a pod should have is decided as the webhook decides it: by its first volume that names one, else the chart's. A pod
belongs to the rollout only if its sidecar can be replaced without loss, and if none of its volumes says `rollout: Manual`.
"""

import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

from jfs_api import names

from jfs_operator.api import Object, annotation, is_deleting, metadata

# What the kubelet does not get over by itself, or not soon: there is nothing to wait for while operations wait.
_HOPELESS: Final = frozenset(
    {
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
_NO_IMAGE: Final = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_NOT_SURVIVED: Final = "fuse-host=pyfuse3"


@dataclass(frozen=True, slots=True)
class Mark:
    """On a pod whose sidecar is being replaced: from which image to which, at how many restarts, since when (RFC 3339)."""

    image: str
    former: str
    restarts: int
    since: str

    def text(self) -> str:
        fields = {"image": self.image, "former": self.former, "restarts": self.restarts, "since": self.since}
        return json.dumps(fields)

    @classmethod
    def of(cls, pod: Object) -> Self | None:
        """None when there is none, or one that nobody can read."""
        try:
            fields = json.loads(annotation(pod, names.ROLLOUT_ANNOTATION) or "null")
            mark = cls(str(fields["image"]), str(fields["former"]), int(fields["restarts"]), str(fields["since"]))
            datetime.datetime.fromisoformat(mark.since)
        except (ValueError, TypeError, KeyError):
            return None
        return mark

    def age(self, now: datetime.datetime) -> float:
        return (now - datetime.datetime.fromisoformat(self.since)).total_seconds()


@dataclass(frozen=True, slots=True)
class Member:
    """A pod of the rollout. `volumes` are its PersistentVolumes, `wanted` the image it should have, `trouble` what events
    tell of its image."""

    pod: Object
    volumes: tuple[str, ...]
    wanted: str
    manual: bool
    trouble: str = ""

    @property
    def name(self) -> str:
        return f"{metadata(self.pod)['namespace']}/{metadata(self.pod)['name']}"

    @property
    def image(self) -> str:
        return str((_container(self.pod) or {}).get("image", ""))

    @property
    def mark(self) -> Mark | None:
        return Mark.of(self.pod)


def members(pods: Iterable[Object], volumes: Iterable[Object], image: str, driver: str) -> list[Member]:
    """In a fixed order. `pods` are injected ones, `volumes` PersistentVolumes, `image` and `driver` the chart's."""
    by_claim = {
        (claim.get("namespace"), claim.get("name")): volume
        for volume in volumes
        if (claim := volume["spec"].get("claimRef")) and (volume["spec"].get("csi") or {}).get("driver") == driver
    }
    found = []
    for pod in pods:
        if not _takes_part(pod):
            continue
        mine = [volume for key in _claims(pod) if (volume := by_claim.get(key))]
        if any(_NOT_SURVIVED in _options(volume) for volume in mine):
            continue
        wishes = [_wish(volume) for volume in mine]
        wanted = next((str(wish["image"]) for wish in wishes if wish.get("image")), image)
        manual = any(wish.get("rollout") == names.MANUAL for wish in wishes)
        found.append(Member(pod, tuple(metadata(volume)["name"] for volume in mine), wanted, manual))
    return sorted(found, key=lambda member: member.name)


def restarts(pod: Object) -> int:
    return int(_status(pod).get("restartCount", 0))


def ready_for(pod: Object, now: datetime.datetime) -> float | None:
    """Seconds since the sidecar's container was started, if it has mounted everything; else None."""
    status = _status(pod)
    running = (status.get("state") or {}).get("running")
    if not running or not status.get("started") or not status.get("ready"):
        return None
    return (now - datetime.datetime.fromisoformat(running["startedAt"])).total_seconds()


def hopeless(pod: Object) -> str:
    """Why the sidecar will not come back by itself; empty while it may."""
    waiting = (_status(pod).get("state") or {}).get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    return f"{reason}: {waiting.get('message', '')}" if reason in _HOPELESS else ""


def pull_trouble(events: Iterable[Object], since: str) -> str:
    """Why the sidecar's image cannot be had, by the pod's events since then (RFC 3339); empty if none says so.

    The status does not tell: while the kubelet fails to start a container again, it shows how the former one ended.
    """
    for event in events:
        place = str((event.get("involvedObject") or {}).get("fieldPath", ""))
        message, time = str(event.get("message", "")), str(event.get("lastTimestamp") or "")
        if names.SIDECAR_CONTAINER in place and time >= since and any(reason in message for reason in _NO_IMAGE):
            return message
    return ""


def state(pod: Object) -> str:
    """The sidecar's state in a word, for a sentence."""
    waiting = (_status(pod).get("state") or {}).get("waiting") or {}
    if waiting.get("reason"):
        return str(waiting["reason"])
    return "it runs and has not mounted everything" if (_status(pod).get("state") or {}).get("running") else "it ended"


def _takes_part(pod: Object) -> bool:
    """A pod made by an older release has no state volume: with its container goes what is open."""
    spec = pod.get("spec") or {}
    survives = any(volume.get("name") == names.STATE_VOLUME for volume in spec.get("volumes") or [])
    runs = (pod.get("status") or {}).get("phase") == "Running"
    return survives and runs and not is_deleting(pod) and _container(pod) is not None


def _container(pod: Object) -> dict[str, Any] | None:
    every = (pod.get("spec") or {}).get("initContainers") or []
    return next((each for each in every if each.get("name") == names.SIDECAR_CONTAINER), None)


def _status(pod: Object) -> dict[str, Any]:
    every = (pod.get("status") or {}).get("initContainerStatuses") or []
    return next((each for each in every if each.get("name") == names.SIDECAR_CONTAINER), {})


def _claims(pod: Object) -> list[tuple[str, str]]:
    """(namespace, name) of its claims, in its order."""
    head = metadata(pod)
    found = []
    for volume in pod["spec"].get("volumes") or []:
        if source := volume.get("persistentVolumeClaim"):
            found.append((head["namespace"], source.get("claimName")))
        elif volume.get("ephemeral"):
            found.append((head["namespace"], f"{head['name']}-{volume.get('name')}"))
    return found


def _wish(volume: Object) -> dict[str, Any]:
    """`spec.sidecar` as the volume's annotation has it; what is malformed wishes nothing, as with the webhook."""
    try:
        wish = json.loads(annotation(volume, names.SIDECAR_ANNOTATION) or "{}")
    except ValueError:
        return {}
    return wish if isinstance(wish, dict) else {}


def _options(volume: Object) -> str:
    spec = volume.get("spec") or {}
    attributes = (spec.get("csi") or {}).get("volumeAttributes") or {}
    return ",".join([*(spec.get("mountOptions") or []), str(attributes.get("mountOptions", ""))])
