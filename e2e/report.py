"""The way of a pod from `apply` to gone, step by step, beside the same pod without a volume; medians go into a report.

Seen from outside, whatever the parts say of themselves: the node's mount table is read every few milliseconds by a thread (the volume
path is bound: NodePublish has happened; a FUSE mount lies on it: mounted), the pod's state comes from a watch. Times are in seconds
since `apply` was called, and for `deleted` since `delete` was.
"""

import re
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e import documents
from e2e.cluster import Cluster, Kubectl

STEPS = ("applied", "published", "mounted", "running", "deleted")
_PAUSE = 0.005


@dataclass
class MountWatch:
    """Notes when a pod's volume path appears in the node's mount table, and when a FUSE mount does."""

    cluster: Cluster
    uid: str
    seen: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "MountWatch":
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _look(self) -> None:
        table = Path(f"/proc/{self.cluster.pid()}/mountinfo")
        while not self._stop.wait(_PAUSE) and "mounted" not in self.seen:
            for line in table.read_text().splitlines():
                place = line.split()[4]
                if f"/pods/{self.uid}/volumes/kubernetes.io~csi/jfsv-" in place and place.endswith("/mount"):
                    kind = "mounted" if " - fuse.juicefs " in line else "published"
                    self.seen.setdefault(kind, time.monotonic())


def one_pod(cluster: Cluster, kubectl: Kubectl, name: str, claim: str | None) -> dict[str, float]:
    """Starts a pod, waits until its container runs, deletes it, and says when each step was seen."""
    pod = documents.pod(name, mounts={claim: "/data"} if claim else None)
    started = time.monotonic()
    kubectl.apply(pod)
    times = {"applied": time.monotonic() - started}
    uid = str(kubectl.get("pod", name)["metadata"]["uid"])
    with MountWatch(cluster, uid) as mounts:
        for seen, current in kubectl.watch("pod", name):
            ready = [c for c in current["status"].get("conditions", ()) if c["type"] == "Ready"]
            if ready and ready[0]["status"] == "True":
                times["running"] = seen - started
                break
    times |= {step: seen - started for step, seen in mounts.seen.items()}
    deleting = time.monotonic()
    kubectl("delete", "pod", name)
    times["deleted"] = time.monotonic() - deleting
    return times


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Smallest, median and largest of each step that was seen."""
    summary = {}
    for step in STEPS:
        values = sorted(run[step] for run in runs if step in run)
        if values:
            summary[step] = (values[0], statistics.median(values), values[-1])
    return summary


def table(columns: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A Markdown table of the steps: one column per kind of pod, each `median (smallest to largest)`."""
    summaries = {name: medians(runs) for name, runs in columns.items()}
    heads = [f"{name} ({len(columns[name])} runs)" for name in summaries]
    lines = ["| step | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for step in STEPS:
        cells = []
        for summary in summaries.values():
            if step in summary:
                low, middle, high = summary[step]
                cells.append(f"{middle:.2f} s ({low:.2f} to {high:.2f})")
            else:
                cells.append("")
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def publish_seconds(metrics: str) -> dict[str, tuple[int, float]]:
    """Number of first publishes by kind of volume, and the bound in seconds within which half of them ended, out of the node service's
    metrics text. A mean would tell of those that scenarios have stopped the node service in."""
    buckets: dict[str, list[tuple[float, float]]] = {}
    for found in re.finditer(
        r'^jfs_csi_publish_seconds_bucket\{kind="(\w+)",le="([^"]+)"\} (\S+)$', metrics, re.MULTILINE
    ):
        buckets.setdefault(found[1], []).append((float(found[2]), float(found[3])))
    answer = {}
    for kind, each in sorted(buckets.items()):
        count = max(within for _, within in each)
        answer[kind] = int(count), min((bound for bound, within in each if 2 * within >= count), default=0.0)
    return answer


def write(
    place: Path, columns: Mapping[str, Sequence[Mapping[str, float]]], published: Mapping[str, tuple[int, float]]
) -> None:
    """Writes the report with both tables."""
    lines = [
        "# The way of a pod",
        "",
        "Seconds since `apply`; `deleted` since `delete`. Median (smallest to largest).",
        "",
    ]
    lines += [table(columns), "", "NodePublish as the node service measures it (first call of each volume):", ""]
    lines += [f"- {kind}: half of {count} within {half * 1000:.0f} ms" for kind, (count, half) in published.items()]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("\n".join(lines) + "\n")
