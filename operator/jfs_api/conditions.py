"""Conditions as kstatus reads them: positive types, a CamelCase reason, a sentence, and a time that moves only with the status.

A reconcile computes the new conditions without looking at the old ones; `merge` makes the list that is written. Pure functions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["True", "False", "Unknown"]

MESSAGE_LIMIT = 1024  # characters; a longer message is cut, since `kubectl get -o wide` shows it on one line


@dataclass(frozen=True, slots=True)
class Condition:
    """What is so about one aspect of an object. `message` never holds a secret: whoever makes it has scrubbed it."""

    type: str
    status: Status
    reason: str
    message: str


def merge(
    old: Iterable[Mapping[str, Any]], new: Iterable[Condition], *, generation: int, now: str
) -> list[dict[str, Any]]:
    """The list to write: `new` in order, each keeping the old transition time while its status stays. `now` is RFC 3339."""
    before = {condition.get("type"): condition for condition in old}
    merged = []
    for condition in new:
        former = before.get(condition.type, {})
        same = former.get("status") == condition.status
        merged.append(
            {
                "type": condition.type,
                "status": condition.status,
                "observedGeneration": generation,
                "lastTransitionTime": former.get("lastTransitionTime", now) if same else now,
                "reason": condition.reason,
                "message": condition.message[:MESSAGE_LIMIT],
            }
        )
    return merged


def find(conditions: Iterable[Mapping[str, Any]], type: str) -> Condition | None:
    """The condition of that type in a status, or None."""
    for condition in conditions:
        if condition.get("type") == type:
            return Condition(type, condition["status"], condition.get("reason", ""), condition.get("message", ""))
    return None


def transitions(old: Iterable[Mapping[str, Any]], new: Iterable[Condition]) -> list[Condition]:
    """The conditions whose status or reason changed: those that deserve an event."""
    before = {condition.get("type"): (condition.get("status"), condition.get("reason")) for condition in old}
    return [condition for condition in new if before.get(condition.type) != (condition.status, condition.reason)]


def summarize(type: str, parts: Iterable[Condition], *, reason: str, message: str) -> Condition:
    """True with `reason` and `message` when every part is True, otherwise the first part that is not, under the name `type`."""
    for part in parts:
        if part.status != "True":
            return Condition(type, "False", part.reason, part.message)
    return Condition(type, "True", reason, message)
