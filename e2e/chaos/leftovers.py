"""What has stayed of pods that are gone: on the node, in the kernel, in the node service's processes, in the databases."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from e2e.chaos.parts import Parts, descriptors
from e2e.chaos.world import VOLUMES, World
from e2e.cluster import Timeout, until

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_SECONDS = 120.0


def after(world: World, parts: Parts, uids: Sequence[str]) -> list[str]:
    """A sentence for each thing that is still there some time after the pods have gone."""

    def none() -> bool:
        return not found(world, parts, uids)

    try:
        until("nothing to be left", none, _SECONDS, pause=1)
    except Timeout:
        return found(world, parts, uids)
    return []


def found(world: World, parts: Parts, uids: Sequence[str]) -> list[str]:
    told = [f"left of pod {uid}: {thing}" for uid in uids for thing in world.scenario.left_of(uid)]
    told += _connections(parts, {number for uid in uids for number in parts.all_connections(uid)})
    for part in ("node", "holder"):
        for process in parts.find(part):
            told += [f"the {part} process has {thing}" for thing in _of_process(process.number, uids)]
    for volume in VOLUMES:
        sessions = world.sessions(volume)
        if sessions:
            told.append(f"sessions in the database of volume {volume}: {sessions}")
    return told


def _connections(parts: Parts, ours: set[str]) -> Iterator[str]:
    """FUSE connections that live or are held open; a number may have become another mount's, of another node on this machine too."""
    for part in ("node", "holder"):
        for process in parts.find(part):
            for connection in descriptors(process.number):
                if connection in ours:
                    yield f"the {part} process has a descriptor of the FUSE connection {connection}"
    living = [name for name in ours if (_CONNECTIONS / name.removeprefix("0:")).exists()]
    if living:
        elsewhere = _fuse_mounts()
        yield from (f"the FUSE connection {name}" for name in living if name not in elsewhere)


def _fuse_mounts() -> set[str]:
    """Devices of all FUSE mounts in any mount namespace."""
    devices, seen = set(), set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            namespace = os.readlink(entry / "ns" / "mnt")
            if namespace not in seen:
                seen.add(namespace)
                lines = (entry / "mountinfo").read_text().splitlines()
                devices |= {line.split()[2] for line in lines if " - fuse" in line}
        except OSError:  # it ended meanwhile
            continue
    return devices


def _of_process(number: int, uids: Sequence[str]) -> Iterator[str]:
    """Sockets, files and dead processes' descriptors in a process of the node service."""
    try:
        sockets = Path(f"/proc/{number}/net/unix").read_text().splitlines()
        entries = list(Path(f"/proc/{number}/fd").iterdir())
    except OSError:  # it ended meanwhile
        return
    yield from (f"the socket {line.split()[-1]}" for line in sockets if any(uid in line for uid in uids))
    for entry in entries:
        try:
            target = os.readlink(entry)
            if any(uid in target for uid in uids):
                yield f"a descriptor of {target}"
            elif "[pidfd]" in target:
                lines = Path(f"/proc/{number}/fdinfo/{entry.name}").read_text().splitlines()
                if "Pid:\t-1" in lines:
                    yield "a pidfd of a process that has ended"
        except OSError:
            continue
