"""The control group of a node: made before its components start, removed after all its processes have ended.

cgroup v1 has one tree per controller, v2 a single tree; both are found below /sys/fs/cgroup.
"""

import errno
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
BUSY_SECONDS = 20.0


def is_v2(root: Path = ROOT) -> bool:
    return (root / "cgroup.controllers").exists()


def controllers(root: Path = ROOT) -> list[Path]:
    """The trees in which a node's group is made."""
    if is_v2(root):
        return [root]
    # symbolic links (cpu -> cpu,cpuacct) name the same tree twice; `unified` is v2 beside v1 and has no controllers
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.is_symlink() and p.name != "unified")


def make(name: str, root: Path = ROOT) -> None:
    for controller in controllers(root):
        group = controller / name
        group.mkdir(exist_ok=True)
        if is_v2(root):
            enabled = " ".join("+" + c for c in (root / "cgroup.controllers").read_text().split())
            (root / "cgroup.subtree_control").write_text(enabled)
            (group / "cgroup.subtree_control").write_text(enabled)
        elif controller.name == "cpuset":
            for file in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group, and then no process may enter
                (group / file).write_text((controller / file).read_text())


def remove(name: str, root: Path = ROOT) -> None:
    """Removes the group with all groups below it, deepest first; also the one that runc makes in v1's `unified`."""
    for tree in {*controllers(root), root / "unified"}:
        for folder, _, _ in os.walk(tree / name, topdown=False):
            _rmdir(Path(folder))


def _rmdir(group: Path) -> None:
    """A group stays busy for a moment after its last process has ended, and nothing tells when that is over."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return group.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
