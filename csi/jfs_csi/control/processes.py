"""Which processes of a pod are alive, by the cgroups of all processes of the node: decides what an ending sidecar leaves.

A sidecar that gets SIGTERM cannot know whether its pod ends (the application is gone already) or only its own container is
replaced (the application works on). The node can see: processes in another container's cgroup of the pod mean the latter.
The pause process, which every pod has until its very end, does not count. Works with both cgroup versions and drivers, in
the host's pid namespace. Blocking: some hundred small reads.
"""

import re
from pathlib import Path

_PAUSE = "pause"  # what containerd, CRI-O and Docker call the sandbox's process
# The last part of a container's cgroup path: "<id>" or, by systemd, "cri-containerd-<id>.scope".
_CONTAINER = re.compile(r"[^/]+$")


def containers(pod_uid: str, proc: Path = Path("/proc")) -> dict[str, list[int]]:
    """Processes of the pod by container (the last part of its cgroup's path), without the sandbox's."""
    found: dict[str, list[int]] = {}
    spellings = (f"pod{pod_uid}", f"pod{pod_uid.replace('-', '_')}")
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            cgroup = (entry / "cgroup").read_text(errors="replace")
            if not any(spelling in cgroup for spelling in spellings):
                continue
            if (entry / "comm").read_text(errors="replace").strip() == _PAUSE and _is_alone(entry):
                continue
        except OSError:
            continue  # it ended meanwhile
        name = container(cgroup, pod_uid)
        if name is not None:
            found.setdefault(name, []).append(int(entry.name))
    return found


def container(cgroup: str, pod_uid: str) -> str | None:
    """The container that a cgroup file of the pod's process names; None for the pod's own cgroup or another pod's."""
    spellings = (f"pod{pod_uid}", f"pod{pod_uid.replace('-', '_')}")
    for line in cgroup.splitlines():
        path = line.rpartition(":")[2]
        for spelling in spellings:
            head, found, below = path.rpartition(spelling)
            last = _CONTAINER.search(below.partition("/")[2].partition("/")[0]) if found and head else None
            if last is not None:
                return last[0]
    return None


def others_live(pod_uid: str, own_cgroup: str, proc: Path = Path("/proc")) -> bool:
    """Whether another container of the pod than the one with this cgroup file has living processes."""
    own = container(own_cgroup, pod_uid)
    if own is None:
        return False  # nothing can be told: as if the pod ended
    return any(
        name != own and any(_lives(pid, proc) for pid in pids) for name, pids in containers(pod_uid, proc).items()
    )


def _lives(pid: int, proc: Path) -> bool:
    try:
        state = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def _is_alone(process: Path) -> bool:
    """Whether the process has no command line but its own name: an application that is called pause usually has."""
    words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    return len(words) <= 1
