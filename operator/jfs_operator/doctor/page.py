"""One page: the findings, the first cause with its remedy, the last events; or the same as JSON. Pure."""

import json
import textwrap
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from jfs_operator.api import Object
from jfs_operator.doctor.findings import Finding, Status
from jfs_operator.doctor.sidecar import event_time

_WIDTH: Final = 110
_SUBJECT: Final = 20
_EVENTS: Final = 6
_MARKS: Final = {Status.OK: "ok", Status.PROBLEM: "PROBLEM", Status.NOTE: "note", Status.UNKNOWN: "?"}


class Exit(IntEnum):
    """Exit status of `jfs doctor`."""

    WELL = 0
    PROBLEM = 1
    FAILED = 2  # nothing was found out: wrong usage, no API server, no such object
    UNCERTAIN = 3  # no problem where one could look, and not everywhere could one


def verdict(findings: Sequence[Finding]) -> Exit:
    kinds = {finding.status for finding in findings}
    if Status.PROBLEM in kinds:
        return Exit.PROBLEM
    return Exit.UNCERTAIN if Status.UNKNOWN in kinds else Exit.WELL


def cause(findings: Sequence[Finding]) -> Finding | None:
    """The first problem: what comes after it follows from it, more often than not."""
    return next((finding for finding in findings if finding.status is Status.PROBLEM), None)


def text(subject: str, findings: Sequence[Finding], events: Sequence[Object]) -> str:
    """The page; `subject` is what was asked about."""
    lines = [subject, ""]
    for finding in findings:
        head = f"  {_MARKS[finding.status]:8}{finding.subject:{_SUBJECT}} "
        lines += _wrapped(head, finding.text)
    first = cause(findings)
    lines.append("")
    if first is not None:
        lines += _wrapped("Cause:  ", first.text)
        lines += _wrapped("Remedy: ", first.remedy)
    elif verdict(findings) is Exit.UNCERTAIN:
        lines.append("No problem was found where one may look; what is marked ? needs more rights.")
    else:
        lines.append("No problem was found.")
    if recent := _recent(events):
        lines += ["", "Last events:"]
        for event in recent:
            count = f" ({event['count']} times)" if (event.get("count") or 1) > 1 else ""
            head = f"  {event_time(event)} {event.get('reason', '')}{count} "
            lines += _wrapped(head, str(event.get("message", "")), indent=6)
    return "\n".join(lines) + "\n"


def document(subject: str, findings: Sequence[Finding], events: Sequence[Object]) -> str:
    """The same for programs."""
    first = cause(findings)
    return json.dumps(
        {
            "subject": subject,
            "verdict": verdict(findings).name.lower(),
            "cause": None if first is None else first.text,
            "remedy": None if first is None else first.remedy,
            "findings": [
                {"status": each.status.value, "subject": each.subject, "text": each.text, "remedy": each.remedy}
                for each in findings
            ],
            "events": [
                {
                    "time": event_time(event),
                    "type": event.get("type", ""),
                    "reason": event.get("reason", ""),
                    "message": event.get("message", ""),
                    "count": event.get("count") or 1,
                }
                for event in _recent(events)
            ],
        },
        indent=2,
    )


def _recent(events: Sequence[Object]) -> list[Object]:
    # The same is told of pod and PersistentVolume.
    once = {(event.get("reason"), event.get("message")): event for event in sorted(events, key=event_time)}
    return sorted(once.values(), key=event_time)[-_EVENTS:]


def _wrapped(head: str, words: str, indent: int | None = None) -> list[str]:
    margin = " " * (len(head) if indent is None else indent)
    return textwrap.wrap(
        " ".join(words.split()),
        _WIDTH,
        initial_indent=head,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head]
