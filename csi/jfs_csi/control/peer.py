"""Who is at the other end of a control connection: the process must belong to the pod whose directory the socket is in.

First proof: the directory itself, which only the node service can write and only this pod's sidecar has mounted. Second:
the peer's cgroup (SO_PEERCRED → /proc/<pid>/cgroup) names the pod's UID, with `-` or, under the systemd driver, `_`.
Where the cgroup tells nothing – the peer's pid is not visible from our pid namespace (0), or its cgroup names no pod at
all (a cgroup namespace, a process of the host itself) – the directory is the only proof and suffices. A cgroup that names
*another* pod is refused. Blocking for one small read.
"""

import os
import re
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_SO_PEERPIDFD = 77  # Linux 6.5
_POD_IN_CGROUP = re.compile(
    r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
)


class ForeignPeer(PermissionError):
    """The peer belongs to another pod."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as far as it can be known."""

    pid: int  # 0 if not visible from our pid namespace
    proven: bool  # by its cgroup


def authenticate(connection: socket.socket, pod_uid: str, proc: Path = Path("/proc")) -> Peer:
    """Raises `ForeignPeer`."""
    pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    if pid == 0:
        return Peer(0, proven=False)
    pidfd = _peer_pidfd(connection)
    try:
        cgroup = (proc / str(pid) / "cgroup").read_text(errors="replace")
        if pidfd is not None and _has_ended(pidfd):
            raise ForeignPeer(f"The peer (process {pid}) ended before it could be identified.")
    except OSError as error:
        if isinstance(error, ForeignPeer):
            raise
        raise ForeignPeer(f"The peer (process {pid}) cannot be identified: {error.strerror}.") from error
    finally:
        if pidfd is not None:
            os.close(pidfd)
    return Peer(pid, proven=belongs(cgroup, pod_uid, pid))


def belongs(cgroup: str, pod_uid: str, pid: int = 0) -> bool:
    """True if the cgroup file names the pod, False if it names none. Raises `ForeignPeer` if it names others only."""
    if f"pod{pod_uid}" in cgroup or f"pod{pod_uid.replace('-', '_')}" in cgroup:
        return True
    other = _POD_IN_CGROUP.search(cgroup)
    if other is not None and other[1].replace("_", "-") not in _own_pods():
        raise ForeignPeer(f"The peer (process {pid}) belongs to pod {other[1]}, not to this one.")
    return False


def _own_pods() -> set[str]:
    # In a cluster inside a pod (or a test run in one) every process carries the outer pod's UID: it tells nothing.
    try:
        text = Path("/proc/1/cgroup").read_text(errors="replace")
    except OSError:
        return set()
    return {match.replace("_", "-") for match in _POD_IN_CGROUP.findall(text)}


def _peer_pidfd(connection: socket.socket) -> int | None:
    try:
        return int(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError:
        return None


def _has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])
