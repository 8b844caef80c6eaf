"""What a plan can ask for next, and what a plan is: the vocabulary between the pure planners and the reconciler that acts.

A planner looks at the world once and names at most one step; the reconciler does it, puts the outcome into the world and asks
again. A step can be repeated at any time without harm, which is why the operator may be killed at any point. Plain records.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from jfs_api.conditions import Condition
from jfs_api.credentials import Credentials

from jfs_operator.api import Object, Resource
from jfs_operator.command import FileSystem, Inspection

# The objects that belong to one JuiceFSVolume, by their place in its world.
Slot = Literal["managed_secret", "volume", "claim"]


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of one of the volume's objects."""

    slot: Slot
    resource: Resource
    manifest: Object


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete one of the volume's objects."""

    slot: Slot
    resource: Resource
    found: Object


@dataclass(frozen=True, slots=True)
class ReleaseClaim:
    """Take the vanished claim's UID out of the PersistentVolume, so that a new claim can bind."""

    name: str


@dataclass(frozen=True, slots=True)
class Format:
    """`jfs format`, which also finds a volume that exists already; `uuid` makes a repetition complete what was begun."""

    credentials: Credentials
    uuid: str


@dataclass(frozen=True, slots=True)
class Inspect:
    """`jfs status`: where do the credentials lead?"""

    credentials: Credentials
    storage: bool = False


@dataclass(frozen=True, slots=True)
class RemoveData:
    """`jfs destroy`, or `jfs rmr` of a directory."""

    credentials: Credentials
    uuid: str
    directory: str


Step = Apply | Remove | ReleaseClaim | Format | Inspect | RemoveData


@dataclass(frozen=True, slots=True)
class Failure:
    """A `jfs` command failed; the message is scrubbed."""

    message: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server refused an object; the message is scrubbed."""

    slot: Slot
    message: str


# What the `jfs` commands of this pass gave.
Verdict = FileSystem | Inspection | Failure


class Next(Enum):
    """What to wait for when a plan has no step."""

    NOTHING = "all is as it should be"
    EVENT = "another controller's turn; its event comes"
    RETRY = "something failed; try again with back-off"
    GONE = "deletion is finished"


@dataclass(frozen=True, slots=True)
class Plan:
    """One step or none, what is so now, and what to wait for."""

    conditions: tuple[Condition, ...]
    next: Next
    step: Step | None = None
    file_system: FileSystem | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Resolution:
    """The credentials that an object's references lead to, or why they lead nowhere.

    `fingerprint` names the versions of the objects read, so that a change of any of them is noticed without keeping a value.
    """

    credentials: Credentials | None
    fingerprint: str
    reason: str = "Valid"
    message: str = "all keys are there"


@dataclass(frozen=True, slots=True)
class MountReport:
    """The last event that a node service posted on the PersistentVolume."""

    reason: str
    message: str
    time: str = field(default="", compare=False)
