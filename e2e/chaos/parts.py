"""The processes of each part on the node, told by control group and command line, and signals to them. Asks nobody in the cluster,
since any of it may be away. One thread.

A connection of a mount is lost, as documented, when every process that has its descriptor dies; `last_keepers` says whether a kill would
do that.
"""

import contextlib
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.chaos import plan
from e2e.cluster import Cluster

PROGRAMS = {"node": "jfs-csi", "holder": "jfs-csi-holder", "operator": "jfs-operator", "webhook": "jfs-webhook"}
_FUSE = os.makedev(10, 229)  # misc major, FUSE minor


@dataclass(frozen=True, slots=True)
class Process:
    number: int  # as the host sees it
    command: tuple[str, ...]

    def is_program(self, name: str) -> bool:
        """Whether it is that program, run directly or as `python -m jfs`; PostgreSQL's processes call themselves `postgres: …`."""
        return any(word.rsplit("/", 1)[-1].rstrip(":") == name for word in self.command[:3])


@dataclass
class Parts:
    """`pods` are the UIDs of the application's pods by ordinal, `servers` those of the back ends by name."""

    cluster: Cluster
    pods: Sequence[str]
    servers: Mapping[str, str]
    programs: Mapping[str, str]
    _connections: dict[str, set[str]] = field(default_factory=dict)

    def find(self, part: str, pod: int | None = None) -> list[Process]:
        """Processes of the part that run now, the oldest first."""
        if part in plan.IN_POD:
            assert pod is not None
            word = {"supervisor": "sidecar"}.get(part, part)
            return [p for p in self._of(self.pods[pod]) if p.is_program("jfs") and word in p.command]
        if part == "kubelet":
            return [p for p in _children(self.cluster.pid()) if p.is_program("kubelet")]
        if part in self.servers:
            return [p for p in self._of(self.servers[part]) if p.is_program(self.programs[part])]
        return [p for p in self._of("") if p.is_program(PROGRAMS[part])]

    def _of(self, uid: str) -> list[Process]:
        found = [Process(number, tuple(command.split())) for number, command in self.cluster.pod_processes(uid)]
        return sorted(found, key=lambda process: process.number)

    # -- connections ---------------------------------------------------------------------------------------------------

    def connections(self, uid: str) -> set[str]:
        """Devices ("0:39") of the FUSE mounts of a pod that are in the node's mount table now; remembered for `all_connections`."""
        found = {line.split()[2] for line in self.cluster.mounts() if uid in line and " - fuse.juicefs " in line}
        self._connections.setdefault(uid, set()).update(found)
        return found

    def all_connections(self, uid: str) -> set[str]:
        """Those that the pod has ever been seen with."""
        return self._connections.get(uid, set())

    def keepers(self) -> list[Process]:
        """Processes that may have descriptors of connections."""
        inside = [p for uid in self.pods for p in self._of(uid) if p.is_program("jfs")]
        return [*self.find("node"), *self.find("holder"), *inside]

    def last_keepers(self, victims: Sequence[Process], part: str, pod: int | None) -> str:
        """Which pod's connection would be lost with the victims, or an empty text."""
        dead = {p.number for p in victims}
        if part == "supervisor" and pod is not None:  # the container's first process takes the others along
            dead |= {p.number for p in self._of(self.pods[pod]) if p.is_program("jfs")}
        kept = [found for p in self.keepers() if p.number not in dead for found in descriptors(p.number)]
        for ordinal, uid in enumerate(self.pods):
            needed = self.connections(uid)
            # before Linux 6.17 a descriptor does not tell which connection it is of
            missing = needed - set(kept) if None not in kept else set()
            if missing or len(kept) < len(needed):
                return f"pod {ordinal}"
        return ""


def descriptors(number: int) -> list[str | None]:
    """The connection of each descriptor of /dev/fuse that a process has; None where the kernel does not tell."""
    found: list[str | None] = []
    try:
        entries = list(Path(f"/proc/{number}/fd").iterdir())
    except OSError:  # it ended meanwhile
        return found
    for entry in entries:
        with contextlib.suppress(OSError):
            status = entry.stat()  # its name is that in the container which opened it
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == _FUSE:
                lines = Path(f"/proc/{number}/fdinfo/{entry.name}").read_text().splitlines()
                told = [line.split()[1] for line in lines if line.startswith("fuse_connection:")]
                found.append(f"0:{told[0]}" if told else None)
    return found


def send(processes: Sequence[Process], number: signal.Signals) -> None:
    """A signal to each; one that has ended gets none."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.number, number)


def _children(number: int | None) -> list[Process]:
    found = []
    for child in Path(f"/proc/{number}/task/{number}/children").read_text().split():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            found.append(Process(int(child), tuple(word.decode(errors="replace") for word in command)))
    return found
