"""What a run was, as Markdown for people and JSON for programs. Pure, but for `write`.

The stall of a fault is the longest wait of an operation that was under way when it happened or began within a second of its end, in the pod
that it was done to, or in any pod for a part that serves all; waiting for a lock is no stall, for others may hold it. The median is
of faults during which no other one hit the same pods. What the machine itself makes operations wait is seen in `quiet`, the longest
wait of each second without a fault.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.chaos.injector import DONE, Injected
from e2e.chaos.plan import IN_POD, PARTS
from e2e.chaos.records import Records, Slow

_AFTER = 1.0


@dataclass(frozen=True, slots=True)
class Stall:
    part: str
    action: str
    seconds: float  # 0: no operation took 20 ms or more
    alone: bool


@dataclass
class Summary:
    """One run. `rounds` counts those that were verified to the end."""

    seed: int
    kernel: str
    minutes: float
    rounds: int = 0
    operations: int = 0
    files: int = 0
    visits: list[float] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    quiet: list[float] = field(default_factory=list)
    absent: int = 0
    failures: list[str] = field(default_factory=list)


def stalls(injected: Sequence[Injected], records: Sequence[Records]) -> list[Stall]:
    """The stall of each fault that happened."""
    happened = [one for one in injected if one.outcome == DONE]
    spans = [(one, one.at, _end(one, records)) for one in happened]
    found = []
    for one, begin, end in spans:
        others = [o for o, b, e in spans if o is not one and b <= end and e >= begin and _same_pods(o, one)]
        found.append(Stall(one.fault.part, one.fault.action, round(max(0.0, _wait(one, records)), 3), not others))
    return found


def quiet(injected: Sequence[Injected], records: Sequence[Records]) -> list[float]:
    """The longest wait in each whole second, of all pods, during which and in the second before which no fault had an effect."""
    spans = [(one.at, _end(one, records) + _AFTER) for one in injected if one.outcome == DONE]
    slow = [s for one in records for s in one.slow if s.what != "lock"]
    if not slow:
        return []
    return [
        max((s.seconds for s in slow if s.at <= second + 1 and s.at + s.seconds >= second), default=0.0)
        for second in range(int(min(s.at for s in slow)) + 1, int(max(s.at for s in slow)))
        if not any(begin <= second + 1 and end >= second for begin, end in spans)
    ]


def _same_pods(one: Injected, other: Injected) -> bool:
    return None in (one.fault.pod, other.fault.pod) or one.fault.pod == other.fault.pod


def _under_way(one: Injected, records: Sequence[Records]) -> list[Slow]:
    end = one.at + one.fault.seconds + _AFTER
    pods = [r for r in records if one.fault.part not in IN_POD or r.pod == one.fault.pod]
    return [s for r in pods for s in r.slow if s.what != "lock" and s.at <= end and s.at + s.seconds >= one.at]


def _wait(one: Injected, records: Sequence[Records]) -> float:
    return max((s.at + s.seconds - max(s.at, one.at) for s in _under_way(one, records)), default=0.0)


def _end(one: Injected, records: Sequence[Records]) -> float:
    ends = [s.at + s.seconds for s in _under_way(one, records)]
    return max([one.at + one.fault.seconds, *ends])


def table(found: Sequence[Stall]) -> str:
    """One line per part and way: how many it survived and how long operations waited."""
    lines = ["| part | how | times | stall, median of those alone | stall, maximum |", "|---|---|---|---|---|"]
    for part in PARTS:
        for action in ("kill", "pause", "delete"):
            chosen = [stall for stall in found if (stall.part, stall.action) == (part, action)]
            if chosen:
                alone = [stall.seconds for stall in chosen if stall.alone]
                median = f"{_seconds(statistics.median(alone))} ({len(alone)})" if alone else ""
                longest = _seconds(max(stall.seconds for stall in chosen))
                lines.append(f"| {part} | {_WORDS[action]} | {len(chosen)} | {median} | {longest} |")
    return "\n".join(lines)


_WORDS = {"kill": "killed", "pause": "paused", "delete": "pod deleted"}


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value else "under 0.02 s"


def markdown(summary: Summary) -> str:
    killed = sum(stall.action != "pause" for stall in summary.stalls)
    seconds = [stall.seconds for stall in summary.stalls]
    lines = [
        "# Chaos",
        "",
        f"{summary.minutes:.1f} minutes of faults, seed {summary.seed}, Linux {summary.kernel}: {killed} kills and "
        f"{len(summary.stalls) - killed} pauses; {summary.absent} more met a part that was just being started again. "
        f"{summary.operations} operations of the application in {summary.rounds} rounds, {summary.files} files compared "
        f"after a fresh mount, {len(summary.visits)} visits (volume and pod made, used, deleted).",
        "",
    ]
    if seconds:
        lines += [
            f"Longest wait of an operation around a fault: median {_seconds(statistics.median(seconds))}, "
            f"maximum {_seconds(max(seconds))}.",
            *_quiet(summary.quiet),
            "",
            table(summary.stalls),
            "",
        ]
    if summary.failures:
        lines += [f"**{len(summary.failures)} failures:**", "", *(f"- {failure}" for failure in summary.failures)]
    else:
        lines.append("No operation failed, no byte was wrong, nothing was left behind, no secret was seen.")
    return "\n".join(lines) + "\n"


def _quiet(seconds: Sequence[float]) -> list[str]:
    if not seconds:
        return []
    median, most = statistics.median(seconds), max(seconds)
    return [
        f"In {len(seconds)} seconds without a fault the longest wait was {_seconds(median)} in the median, {_seconds(most)} at most."
    ]


def as_json(summary: Summary) -> dict[str, Any]:
    plain = {name: value for name, value in vars(summary).items() if name != "stalls"}
    faults = [
        {"part": s.part, "action": s.action, "stall_seconds": s.seconds, "alone": s.alone} for s in summary.stalls
    ]
    return {**plain, "faults": faults}


def write(folder: Path, summary: Summary) -> None:
    """`chaos.md` and `chaos.json` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chaos.md").write_text(markdown(summary))
    (folder / "chaos.json").write_text(json.dumps(as_json(summary), indent=1) + "\n")
