"""Attaching and detaching a FUSE mountpoint: mount(2) by root, fusermount3 for users; used by hosts and by `jfs umount`.

A mount made here shows as `JuiceFS:<name> … fuse.juicefs` in the mount table (format §8.5). All calls block for no longer
than the kernel needs; nothing here stats a mountpoint.
"""

import array
import contextlib
import ctypes
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple

from jfs.errors import JfsError
from jfs.fuse import mountinfo

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_SYNCHRONOUS, MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME = 16, 128, 1024, 2048
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
SUBTYPE: Final = "juicefs"

# Options of mount(8) that are flags of mount(2), with the flag and whether they set it.
FLAGS: Final[dict[str, tuple[int, bool]]] = {
    "ro": (MS_RDONLY, True),
    "rw": (MS_RDONLY, False),
    "suid": (MS_NOSUID, False),
    "nosuid": (MS_NOSUID, True),
    "dev": (MS_NODEV, False),
    "nodev": (MS_NODEV, True),
    "exec": (MS_NOEXEC, False),
    "noexec": (MS_NOEXEC, True),
    "sync": (MS_SYNCHRONOUS, True),
    "async": (MS_SYNCHRONOUS, False),
    "dirsync": (MS_DIRSYNC, True),
    "atime": (MS_NOATIME, False),
    "noatime": (MS_NOATIME, True),
    "diratime": (MS_NODIRATIME, False),
    "nodiratime": (MS_NODIRATIME, True),
}


class MountError(JfsError):
    """The mountpoint could not be attached or detached; the message says which and why."""


class MountSpec(NamedTuple):
    """How a mount shall look: fsname, permissions, flags of mount(8) by name, largest read in bytes."""

    mountpoint: str
    fsname: str
    allow_other: bool
    default_permissions: bool
    flags: Sequence[str]
    max_read: int


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class Attached:
    """A mountpoint attached by this process: the descriptor of its FUSE connection, and what it is in the mount table."""

    def __init__(self, spec: MountSpec) -> None:
        """Mount; the descriptor is close-on-exec and non-blocking. MountError."""
        self._take(spec.mountpoint, _mount_by_kernel(spec) if os.geteuid() == 0 else _mount_by_helper(spec))

    @classmethod
    def adopted(cls, mountpoint: str, fd: int) -> "Attached":
        """The mountpoint of a connection that another process attached; without a mountpoint there is nothing to detach."""
        attached = cls.__new__(cls)
        attached._take(mountpoint, fd)
        return attached

    def _take(self, where: str, fd: int) -> None:
        self.mountpoint = where
        self.fd = fd
        os.set_blocking(fd, False)
        mounted = mountinfo.find(where) if where else None
        self._device = mounted.device if mounted is not None else ""

    def detach(self) -> None:
        """Take the mountpoint away, lazily, if it is still this mount: another one may lie there by now. Idempotent."""
        mounted = mountinfo.find(self.mountpoint) if self._device else None
        if mounted is not None and mounted.device == self._device:
            with contextlib.suppress(MountError):  # somebody else was faster
                detach(self.mountpoint, lazy=True)


def _mount_by_kernel(spec: MountSpec) -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(
            f"/dev/fuse cannot be opened ({os.strerror(error.errno or 0)}); is FUSE allowed here?"
        ) from error
    options = [f"fd={fd}", "rootmode=40000", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
    if spec.allow_other:
        options.append("allow_other")
    if spec.default_permissions:
        options.append("default_permissions")
    options.append(f"max_read={spec.max_read}")
    flags = MS_NOSUID | MS_NODEV
    for name in spec.flags:
        bit, on = FLAGS[name]
        flags = flags | bit if on else flags & ~bit
    failed = _libc().mount(
        spec.fsname.encode(),
        os.fsencode(spec.mountpoint),
        f"fuse.{SUBTYPE}".encode(),
        flags,
        ",".join(options).encode(),
    )
    if failed:
        number = ctypes.get_errno()
        os.close(fd)
        raise MountError(f"cannot mount on {spec.mountpoint}: {os.strerror(number)}")
    return fd


def helper() -> str:
    """The path of fusermount3 (or fusermount); MountError when neither is installed."""
    found = shutil.which("fusermount3") or shutil.which("fusermount")
    if found is None:
        raise MountError("mounting without root needs fusermount3 (Debian package fuse3), which is not installed")
    return found


def _mount_by_helper(spec: MountSpec) -> int:
    """fusermount3 opens /dev/fuse and mounts; it hands the descriptor over the socket named by _FUSE_COMMFD."""
    escaped = spec.fsname.replace("\\", "\\\\").replace(",", "\\,")
    options = [f"fsname={escaped}", f"subtype={SUBTYPE}", f"max_read={spec.max_read}", *spec.flags]
    if spec.allow_other:
        options.append("allow_other")
    if spec.default_permissions:
        options.append("default_permissions")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ended = subprocess.run(
            [helper(), "-o", ",".join(options), "--", spec.mountpoint],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
            capture_output=True,
            check=False,
        )
        if ended.returncode:
            said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
            raise MountError(f"cannot mount on {spec.mountpoint}: {said[-1] if said else 'fusermount3 failed'}")
        fds = array.array("i")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: fds.itemsize])
    if not fds:
        raise MountError(f"cannot mount on {spec.mountpoint}: fusermount3 gave no descriptor")
    return fds[0]


def detach(mountpoint: str, *, lazy: bool, force: bool = False) -> None:
    """Unmount *mountpoint*; MountError with the reason. *lazy* detaches a busy one at once; *force* also aborts what hangs.
    Never stats the mountpoint."""
    path = mountinfo.real(mountpoint)
    if os.geteuid() == 0:
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0) | (MNT_FORCE if force else 0)
        if not _libc().umount2(os.fsencode(path), flags):
            return
        number = ctypes.get_errno()
        if number == errno.EBUSY:
            raise MountError(f"{mountpoint} is busy: a process uses it; end it, or detach with --force")
        if number == errno.EINVAL:
            raise MountError(f"{mountpoint} is not a mountpoint")
        raise MountError(f"cannot unmount {mountpoint}: {os.strerror(number)}")
    ended = subprocess.run([helper(), "-u", *(["-z"] if lazy else []), "--", path], capture_output=True, check=False)
    if ended.returncode:
        said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
        raise MountError(f"cannot unmount {mountpoint}: {said[-1] if said else 'fusermount3 failed'}")


def abort(mountpoint: str) -> bool:
    """End the FUSE connection of *mountpoint* by force, so that requests nobody will answer fail; whether there was one and it
    could be reached (root, /sys/fs/fuse)."""
    mounted = mountinfo.find(mountpoint)
    if mounted is None or not mounted.kind.startswith("fuse"):
        return False
    minor = int(mounted.device.partition(":")[2])
    with contextlib.suppress(OSError), open(f"/sys/fs/fuse/connections/{minor}/abort", "w", encoding="ascii") as switch:
        switch.write("1")
        return True
    return False


def set_read_ahead(mountpoint: str, kib: int) -> None:
    """Let the kernel read ahead *kib* KiB on this mount; only root can, others keep the default of 128."""
    mounted = mountinfo.find(mountpoint)
    if mounted is not None and os.geteuid() == 0:
        with (
            contextlib.suppress(OSError),  # a read-only /sys in a container: slower streams, nothing else
            open(f"/sys/class/bdi/{mounted.device}/read_ahead_kb", "w", encoding="ascii") as setting,
        ):
            setting.write(str(kib))
