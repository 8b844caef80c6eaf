"""The packets in `frames/`, for the tests of the node service's end. (The sidecar's tests have a reader of their own.)"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DIRECTORY = Path(__file__).parent / "frames"


@dataclass(frozen=True)
class Case:
    """One packet and what is to happen with it."""

    name: str
    packet: bytes
    says: str
    after: list[dict[str, Any]] = field(default_factory=list)


def cases(file: str, receiver: str) -> list[Any]:
    """Parameters for pytest: the cases of a file that go to the receiver."""
    found = []
    for entry in json.loads((DIRECTORY / file).read_text()):
        if entry["to"] != receiver:
            continue
        if "frame" in entry:
            frame = dict(entry["frame"])
            if "pad" in entry:
                frame["padding"] = "x" * entry["pad"]
            packet = json.dumps(frame).encode()
        else:
            packet = entry["packet"].encode()
        case = Case(entry["name"], packet, entry.get("says", ""), entry.get("after", []))
        found.append(pytest.param(case, id=case.name))
    assert found, f"{file} has no case for {receiver}"
    return found
