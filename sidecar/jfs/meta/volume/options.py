"""What a mount chooses, and the small records of the façade. No behaviour beyond encoding."""

import json
import os
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from jfs.format.constants import CLIENT_VERSION


@dataclass(frozen=True, slots=True)
class MetaOptions:
    """A mount's choices (format §10.1). Times are seconds, except where the name says otherwise.

    *check_access* makes the operations look at permission bits themselves; off when the kernel does (default_permissions).
    *max_deletes* bounds concurrent deletions of objects; 0 leaves all of them to other clients.
    *open_cache*: files looked at less than so long ago are opened without asking the database.
    *hold_attrs* is how long attributes set on a file that is being written for the first time may wait for its commit; 0: not at all.
    """

    read_only: bool = False
    no_bgjob: bool = False
    heartbeat: float = 12.0
    atime_mode: Literal["noatime", "relatime", "strictatime"] = "noatime"
    skip_dir_mtime: float = 0.1
    subdir: str = ""
    max_deletes: int = 10
    check_access: bool = False
    attr_timeout: float = 1.0
    entry_timeout: float = 1.0
    dir_entry_timeout: float = 1.0
    negative_timeout: float = 0.0
    open_cache: float = 0.0
    open_cache_limit: int = 10_000
    hold_attrs: float = 0.1


def _mount_time() -> str:
    now = datetime.now(UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".") + "Z"


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What `status` shows of a mounted client (format §3.6)."""

    mount_point: str = ""
    host_name: str = field(default_factory=socket.gethostname)
    addresses: tuple[str, ...] = ()
    process: int = field(default_factory=os.getpid)
    version: str = CLIENT_VERSION
    mount_time: str = field(default_factory=_mount_time)

    def encode(self) -> bytes:
        """The JSON of the session record."""
        members: dict[str, object] = {"Version": self.version, "HostName": self.host_name}
        if self.addresses:
            members["IPAddrs"] = list(self.addresses)
        members |= {"MountPoint": self.mount_point, "MountTime": self.mount_time, "ProcessID": self.process}
        return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()


class StatFS(NamedTuple):
    """Bytes of the volume, bytes used, inodes used and inodes that can still be made."""

    total: int
    used: int
    inodes: int
    free_inodes: int


PIB = 1 << 50
MANY_INODES = 10 << 20


def volume_room(capacity: int, inodes: int, used_space: int, used_inodes: int) -> StatFS:
    """What statfs shows for limits (0: none) and usage (format §5.3 statfs)."""
    used_space, used_inodes = max(used_space, 0), max(used_inodes, 0)
    if capacity:
        total = max(capacity, used_space)
    else:
        total = PIB
        while total * 8 < used_space * 10:
            total *= 2
    if inodes:
        free = max(inodes - used_inodes, 0)
    else:
        free = MANY_INODES
        while used_inodes > 4 * free:
            free *= 2
    return StatFS(total, used_space, used_inodes, free)
