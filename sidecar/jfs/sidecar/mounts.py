"""What lies on a directory, from /proc/self/mountinfo, and taking it away with umount2(2).

The only two things the supervisor does with mounts; the worker makes them. Never stats: a dead mount answers ENOTCONN, a
hung one not at all.
"""

import ctypes
import os

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_MOST_STACKED = 64
_EINVAL, _ENOENT = 22, 2


def kinds_at(path: str) -> list[str]:
    """File system types mounted on the directory, lowest first (proc_pid_mountinfo(5)). `path` has no links."""
    kinds = []
    # Paths are escaped there: space, tab, newline and backslash as octal.
    wanted = path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
        for line in mountinfo:
            fields, _, rest = line.partition(" - ")
            if fields.split(" ", 5)[4] == wanted:
                kinds.append(rest.split(" ", 1)[0])
    return kinds


def released(path: str) -> bool:
    """Unmount what lies on the directory unless some process uses it, in whatever mount namespace; whether it is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    return not kinds_at(path) or libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW) == 0


def clear(path: str) -> int:
    """Detach every mount on the directory; how many there were. Raises OSError if the kernel refuses."""
    taken = 0
    while kinds_at(path):
        if taken == _MOST_STACKED:
            raise OSError(f"mounts keep appearing on {path}")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
            number = ctypes.get_errno()
            if number not in (_EINVAL, _ENOENT):
                raise OSError(number, f"{os.strerror(number)}: cannot take away the mount on {path}")
        taken += 1
    return taken
