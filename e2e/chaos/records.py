"""What the application's processes have written about themselves, read from the node's side, so that nothing has to answer for it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.chaos import workload
from e2e.chaos.world import PODS
from e2e.cluster import Cluster

END = ("final", "error", "wrong")


@dataclass(frozen=True, slots=True)
class Slow:
    """An operation that took 20 ms or more; `at` is time.time()."""

    what: str
    at: float
    seconds: float


@dataclass
class Records:
    """The lines of one pod's processes so far."""

    pod: int
    uid: str
    folder: Path
    slow: list[Slow] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    _read: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def of(cls, cluster: Cluster, pod: int, uid: str) -> "Records":
        volumes = cluster.instance.state / "kubelet" / "pods" / uid / "volumes"
        return cls(pod, uid, volumes / "kubernetes.io~empty-dir" / "out")

    def processes(self) -> list[str]:
        return [f"{volume}-{kind}" for volume in PODS[self.pod] for kind in workload.KINDS]

    def update(self) -> None:
        """Reads the lines that were added."""
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in self._new_lines(path):
                told = json.loads(line)
                if "slow" in told:
                    self.slow.append(Slow(told["slow"], told["at"], told["seconds"]))
                elif "count" in told:
                    self.counts[path.stem] = told["count"]
                else:
                    self.ends[path.stem] = told

    def _new_lines(self, path: Path) -> Iterator[str]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(whole)
        yield from whole.decode().splitlines()

    def stop(self) -> None:
        (self.folder / "stop").touch()

    def running(self) -> list[str]:
        """Processes that have not said how they ended."""
        return [name for name in self.processes() if name not in self.ends]

    def errors(self) -> list[str]:
        """Operations that failed, and what was wrong."""
        return [
            f"pod {self.pod}, {name}, {kind}: {told[kind]}"
            for name, told in self.ends.items()
            for kind in ("error", "wrong")
            if kind in told
        ]


def expected(records: Sequence[Records]) -> dict[str, dict[str, workload.Content]]:
    """What each volume has to contain once all pods of a round have ended well."""
    trees: dict[str, dict[str, workload.Content]] = {}
    added: dict[tuple[str, str], int] = {}
    for one in records:
        for process, end in one.ends.items():
            volume = process.split("-", 1)[0]
            tree = trees.setdefault(volume, {workload.LOCKS: None})
            for path, value in end.get("final", {}).items():
                tree[path.split("/", 1)[0]] = None
                tree[path] = value
            for kind, number in end.get("added", {}).items():
                added[volume, kind] = added.get((volume, kind), 0) + number
    for (volume, kind), number in added.items():
        data = b"%020d" % number
        trees[volume][f"{workload.LOCKS}/{kind}"] = workload.content(data.ljust(workload.LOCK_FILE))
    return trees


def differences(volume: str, found: dict[str, workload.Content], expected: dict[str, workload.Content]) -> list[str]:
    """A sentence for each path that is missing, too much, or other than it has to be."""
    told = [f"volume {volume}: {path} is missing" for path in sorted(expected.keys() - found.keys())]
    told += [f"volume {volume}: {path} was made by nobody" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        if found[path] != expected[path]:
            told.append(f"volume {volume}: {path} is {found[path]}, not {expected[path]}")
    return told
