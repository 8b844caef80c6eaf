"""What a check says: the record that `checks` and `sidecar` make and `page` prints. Pure."""

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    OK = "ok"
    PROBLEM = "problem"  # the volume is not ready because of this, or will not be
    NOTE = "note"  # worth knowing, and not why
    UNKNOWN = "unknown"  # it could not be looked at


@dataclass(frozen=True, slots=True)
class Finding:
    """`subject` is a word or two; `remedy` what to do, for a problem; both texts are whole sentences without a final newline."""

    status: Status
    subject: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    return Finding(Status.OK, subject, text)


def problem(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Status.PROBLEM, subject, text, remedy)


def note(subject: str, text: str, remedy: str = "") -> Finding:
    return Finding(Status.NOTE, subject, text, remedy)


def unknown(subject: str, denied: str) -> Finding:
    return Finding(Status.UNKNOWN, subject, f"Not looked at: {denied.rstrip('.')}.")
