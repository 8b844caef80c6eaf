"""What is done to which part and when: a function of a seed, so that a run's choices can be repeated. Pure.

The limits are those of what is promised (SEMANTICS.md, "When something fails"): Redis is never away for long enough to fail an
operation on names, and no sidecar's container is killed so often within a round that the kubelet's back-off outlasts the session.
Everything else may meet.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Sidecar processes belong to one of the application's pods, all others to the node or the cluster.
IN_POD = ("worker", "zygote", "supervisor")
# Killed as a container's only process these come back by the kubelet, which waits longer each time; a deleted pod starts anew.
PRODUCT = ("node", "holder", "operator", "webhook")
PARTS = (*IN_POD, *PRODUCT, "kubelet", "redis", "s3", "postgres")


@dataclass(frozen=True, slots=True)
class Fault:
    """`at` counts from the begin of the round; `seconds` is the length of a pause; `pod` is the ordinal of an application's pod, where it
    matters, and `which` chooses among several processes of the part."""

    at: float
    part: str
    action: str  # kill (SIGKILL), pause (SIGSTOP, later SIGCONT), delete (the pod, by force)
    pod: int | None = None
    which: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        where = "" if self.pod is None else f" of pod {self.pod}"
        length = f" for {self.seconds:.1f} s" if self.action == "pause" else ""
        return f"{self.action} {self.part}{where}{length}"


@dataclass(frozen=True, slots=True)
class Kind:
    """How often a fault is chosen in relation to others, and how long a pause may be (0: SIGKILL)."""

    part: str
    weight: int
    pause: float = 0.0


KINDS = (
    Kind("worker", 9),
    Kind("worker", 3, pause=5),
    Kind("zygote", 2),
    Kind("supervisor", 5),
    Kind("supervisor", 2, pause=5),
    Kind("node", 3),
    Kind("node", 2, pause=8),
    Kind("holder", 2),
    Kind("holder", 1, pause=8),
    Kind("operator", 2),
    Kind("operator", 1, pause=8),
    Kind("webhook", 2),
    Kind("webhook", 1, pause=8),
    Kind("kubelet", 2),
    Kind("kubelet", 1, pause=8),
    Kind("redis", 3),
    Kind("redis", 2, pause=4),
    Kind("s3", 3),
    Kind("s3", 2, pause=8),
    # its answers to commits cannot be asked for after a crash, so that killing it may fail an operation
    Kind("postgres", 2, pause=4),
)
SHORTEST_PAUSE = 0.2
GAPS = (0.2, 6.0)  # seconds between faults; small ones let faults meet
# Seconds from the end of an outage to the next one of the same server; the S3 server needs some twenty until it serves again.
BACK_END_REST = {"redis": 10.0, "s3": 40.0, "postgres": 10.0}
SUPERVISOR_KILLS = 3  # of a pod in a round: the kubelet waits 0, 10 and 20 s, and a session lives for 60
CONTAINER_KILLS = 2  # of a pod of the chart before it is deleted


def faults(seed: int, number: int, seconds: float, pods: int) -> list[Fault]:
    """The plan of round `number`, which lasts `seconds`, with as many application pods; sorted by time."""
    return list(_faults(random.Random(f"{seed} {number}"), seconds, pods))


def _faults(rnd: random.Random, seconds: float, pods: int) -> Iterator[Fault]:
    kills: Counter[object] = Counter()
    rest = dict.fromkeys(BACK_END_REST, 0.0)
    at = 0.0
    while True:
        at += rnd.uniform(*GAPS)
        (kind,) = rnd.choices(KINDS, [k.weight for k in KINDS])
        pause = rnd.uniform(SHORTEST_PAUSE, kind.pause) if kind.pause else 0.0
        pod = rnd.randrange(pods) if kind.part in IN_POD else None
        which = rnd.randrange(8)
        if at + pause > seconds:
            return
        action = "pause" if kind.pause else "kill"
        if kind.part in BACK_END_REST:
            if at < rest[kind.part]:
                continue
            rest[kind.part] = at + pause + BACK_END_REST[kind.part]
        if action == "kill" and kind.part == "supervisor":
            if kills[pod] == SUPERVISOR_KILLS:
                continue
            kills[pod] += 1
        if action == "kill" and kind.part in PRODUCT:
            home = "node" if kind.part == "holder" else kind.part  # two containers of one pod
            kills[home] += 1
            if kills[home] > CONTAINER_KILLS:
                kills[home] = 0
                action = "delete"
        yield Fault(round(at, 2), kind.part, action, pod, which, round(pause, 2))


def counted(plan: Sequence[Fault]) -> str:
    """One line: how many faults of each part."""
    numbers = Counter(fault.part for fault in plan)
    return ", ".join(f"{numbers[part]} {part}" for part in PARTS if numbers[part])
