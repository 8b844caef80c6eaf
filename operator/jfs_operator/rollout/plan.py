"""What to do next in a rollout, and what is so about each volume. Pure: everything is read off pods and volumes.

One pod at a time: while a pod carries a mark nobody else is touched. A sidecar that has been ready for the pause ends its turn; one
that cannot come back, or did not in time, gets its former image again, and its volumes carry the image that failed. While one
does, no pod gets that image: that lasts until somebody takes the annotation away, or wants another image.
"""

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jfs_api import names
from jfs_api.conditions import Condition

from jfs_operator.rollout.members import Mark, Member, hopeless, ready_for, restarts, state

RFC_3339 = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Settings:
    """The chart's image and driver; how long a sidecar must be ready before the next one's turn, and within which time, in
    seconds."""

    image: str
    driver: str
    pause: float
    timeout: float


@dataclass(frozen=True, slots=True)
class Replace:
    """Give the pod's sidecar this image, and the pod this mark."""

    member: Member
    image: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Conclude:
    """The pod's turn is over: take its mark away."""

    member: Member


@dataclass(frozen=True, slots=True)
class GiveBack:
    """The sidecar does not come back: its volumes are marked first, then it gets its former image again."""

    member: Member
    mark: Mark
    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """For this pod's sidecar."""

    member: Member


Action = Replace | Conclude | GiveBack | Wait | None


def next_action(
    members: list[Member], stopped: Mapping[str, str], settings: Settings, now: datetime.datetime
) -> Action:
    """`stopped`: the images that failed, by PersistentVolume."""
    for member in members:
        if (mark := member.mark) is not None:
            return judge(member, mark, settings, now)
    failed = set(stopped.values())
    for member in members:
        healthy = ready_for(member.pod, now) is not None
        if member.image != member.wanted and not member.manual and healthy and member.wanted not in failed:
            return Replace(member, member.wanted, _mark(member, member.image, now))
    return None


def judge(member: Member, mark: Mark, settings: Settings, now: datetime.datetime) -> Action:
    """How a pod does whose sidecar is being replaced."""
    if member.image != mark.image:
        return Conclude(member)  # somebody else gave it another one
    ready = ready_for(member.pod, now)
    if ready is not None and restarts(member.pod) > mark.restarts:
        return Conclude(member) if ready >= settings.pause else Wait(member)
    if member.wanted not in (mark.image, mark.former):
        return Replace(member, member.wanted, _mark(member, mark.former, now))  # the chart has moved on meanwhile
    if why := hopeless(member.pod) or member.trouble:
        return GiveBack(member, mark, why)
    if mark.age(now) > settings.timeout:
        return GiveBack(member, mark, f"not ready within {settings.timeout:.0f} s: {state(member.pod)}")
    return Wait(member)


def _mark(member: Member, former: str, now: datetime.datetime) -> Mark:
    return Mark(member.wanted, former, restarts(member.pod), now.strftime(RFC_3339))


def conditions(members: Iterable[Member], stopped: Mapping[str, str]) -> dict[str, Condition]:
    """The condition SidecarsCurrent of each PersistentVolume that a pod of the rollout has."""
    by_volume: dict[str, list[Member]] = {}
    for member in members:
        for volume in member.volumes:
            by_volume.setdefault(volume, []).append(member)
    failed = set(stopped.values())
    return {volume: _condition(mine, stopped.get(volume), failed) for volume, mine in by_volume.items()}


def _condition(members: list[Member], own_failure: str | None, failed: set[str]) -> Condition:
    behind = [member for member in members if member.image != member.wanted or member.mark is not None]
    kind = names.SIDECARS_CURRENT
    if not behind:
        return Condition(
            kind, "True", "UpToDate", f"the sidecars of all {len(members)} pods have the image they should"
        )
    first = behind[0]
    count = f"{len(members) - len(behind)} of {len(members)} pods have the image {first.wanted}"
    if own_failure == first.wanted:
        return Condition(
            kind,
            "False",
            names.ROLLOUT_STOPPED,
            f"{count}; a sidecar did not come back with it and has its former one again. Set another image, or take the"
            f" annotation {names.ROLLOUT_STOPPED_ANNOTATION} off this volume to go on",
        )
    if first.wanted in failed:
        message = f"{count}; the rollout stopped at a pod of another volume, which has the annotation"
        return Condition(
            kind, "False", names.ROLLOUT_STOPPED, f"{message} {names.ROLLOUT_STOPPED_ANNOTATION} and tells more"
        )
    if all(member.manual for member in behind):
        return Condition(kind, "False", "Manual", f"{count}; the others keep theirs, because rollout is Manual")
    return Condition(kind, "False", "RollingOut", count)
