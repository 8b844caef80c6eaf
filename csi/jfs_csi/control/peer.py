"""Who is at the other end of a control connection: the process must belong to the pod whose directory the socket is in.

First proof: the directory itself, which only the node service can write and only this pod's sidecar has mounted. Second:
the peer's cgroup (SO_PEERCRED → /proc/<pid>/cgroup) names the pod's UID, with `-` or, under the systemd driver, `_`.
Where the cgroup tells nothing – the peer's pid is not visible from our pid namespace (0), or its cgroup names no pod at
all (a cgroup namespace, a process of the host itself) – the directory is the only proof and suffices. A cgroup that names
*another* pod is refused. The `Peer` holds a pidfd of the process, by which its death is proven before another one gets its
file systems: a process number alone may be somebody else's by then. Blocking for a few small reads.
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
    """The process at the other end, as far as it can be known. To be closed."""

    pid: int  # 0 if not visible from our pid namespace
    proven: bool  # by its cgroup
    cgroup: str = ""  # what /proc/<pid>/cgroup says
    pidfd: int | None = None

    def is_dead(self) -> bool:
        """Whether the process has ended; True also if it could never be watched."""
        return self.pidfd is None or _has_ended(self.pidfd)

    def is_same_process(self, other: "Peer") -> bool:
        """Whether both are one living process; without process numbers nobody can tell, and the session's name counts."""
        return self.pid == other.pid and not self.is_dead() if self.pid and other.pid else True

    def close(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)


def authenticate(connection: socket.socket, pod_uid: str, proc: Path = Path("/proc")) -> Peer:
    """Raises `ForeignPeer`."""
    pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    pidfd = _peer_pidfd(connection, pid)
    if pid == 0:
        return Peer(0, proven=False, pidfd=pidfd)
    try:
        try:
            cgroup = (proc / str(pid) / "cgroup").read_text(errors="replace")
        except OSError as error:
            raise ForeignPeer(f"The peer (process {pid}) cannot be identified: {error.strerror}.") from error
        # Read while the pidfd lived, it is the cgroup of that very process.
        if pidfd is not None and _has_ended(pidfd):
            raise ForeignPeer(f"The peer (process {pid}) ended before it could be identified.")
        return Peer(pid, belongs(cgroup, pod_uid, pid), cgroup, pidfd)
    except BaseException:
        if pidfd is not None:
            os.close(pidfd)
        raise


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


def _peer_pidfd(connection: socket.socket, pid: int) -> int | None:
    try:
        return int(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError:
        pass  # Linux < 6.5
    try:
        # Should the number be another process's by now, its cgroup, read afterwards, is not this pod's.
        return os.pidfd_open(pid) if pid else None
    except OSError:
        return None


def _has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])
