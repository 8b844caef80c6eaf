"""FUSE mounts that the node service makes itself (restricted mode): open, mount(2), answer INIT, stop reading.

What follows INIT waits in the kernel until a sidecar has the descriptor, so a mount is usable by the pod's containers
whenever they start, and a publish takes milliseconds. Blocking, but for no longer than the kernel needs: its INIT comes
with the mount. A failure leaves nothing mounted.
"""

import contextlib
import ctypes
import logging
import os
import select
from dataclasses import dataclass
from pathlib import Path

from jfs_csi.directories import Tree
from jfs_csi.fuse.device import connection_of
from jfs_csi.fuse.init import Init, Wishes, answer
from jfs_csi.layout import Names
from jfs_csi.mounts import mounts_at

log = logging.getLogger(__name__)

_INIT_WITHIN = 5000  # ms; the request is there when mount(2) returns
_LONGEST_REQUEST = (1 << 20) + 4096  # the kernel refuses a shorter read than its largest request
_KIND = b"fuse.juicefs"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


@dataclass(frozen=True, slots=True)
class Fresh:
    """A mount just made. The descriptor is the caller's to close."""

    descriptor: int
    init: Init
    device: str  # as in mountinfo, "0:39"


def mount(tree: Tree, directory: Names, name: str, wished: Wishes) -> Fresh:
    """Mount on the directory, on top of whatever lies there, as `JuiceFS:<name>` of type fuse.juicefs (format §8.5).

    Raises OSError; its text is a sentence's end and names the step that failed.
    """
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"/dev/fuse cannot be opened ({error.strerror}); is FUSE allowed here?") from error
    try:
        _mount(tree, directory, descriptor, name, wished)
        try:
            if not _wait(descriptor):
                raise TimeoutError("the kernel sent no INIT in time")
            reply, init = answer(os.read(descriptor, _LONGEST_REQUEST), wished)
            os.write(descriptor, reply)
            device = connection_of(descriptor) or _device_at(tree, directory)
        except BaseException:
            _take_back(tree, directory)
            raise
    except BaseException:
        os.close(descriptor)
        raise
    _set_read_ahead(device, max(1024, wished.max_io >> 10))
    return Fresh(descriptor, init, device)


def _mount(tree: Tree, directory: Names, descriptor: int, name: str, wished: Wishes) -> None:
    data = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={wished.max_io}"
    if wished.default_permissions:
        data += ",default_permissions"
    with tree.open(directory) as place:
        # By the descriptor: no name of the path can be swapped for a link meanwhile.
        path = os.fsencode(f"/proc/self/fd/{place}")
        if _libc.mount(f"JuiceFS:{name}".encode(), path, _KIND, wished.flags, data.encode()) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"{os.strerror(error)} (mount of FUSE on {tree.mount_path(directory)})")


def _wait(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(_INIT_WITHIN))


def _device_at(tree: Tree, directory: Names) -> str:
    mounted = [mount for mount in mounts_at([tree.mount_path(directory)]) if mount.is_fuse]
    if not mounted:
        raise OSError("the mount that was just made is gone")
    return mounted[-1].device


def _take_back(tree: Tree, directory: Names) -> None:
    # One mount only: below it may lie a dead one that containers still have.
    with tree.open(directory[:-1]) as parent:
        name = os.fsencode(f"/proc/self/fd/{parent}/{directory[-1]}")
        _libc.umount2(name, 2 | 8)  # MNT_DETACH | UMOUNT_NOFOLLOW


def _set_read_ahead(device: str, kib: int) -> None:
    # A read-only /sys costs slower streams, nothing else.
    with contextlib.suppress(OSError):
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(kib), encoding="ascii")
