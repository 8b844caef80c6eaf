"""The INIT handshake of our own host: what this server wants of the kernel, and the answer that says so.

Chosen for throughput and for what the handlers guarantee: requests of up to 1 MiB (256 pages), 64 of them in the background,
reads in parallel, O_TRUNC within open (one request less), readdirplus where the kernel finds it useful, symbolic links
cached (their targets never change), file handles that outlive the kernel's inodes (open_by_handle_at(2), NFS exports: it looks up
`.` and `..` of any inode), and pages dropped when time or length of a file turn out to have changed elsewhere.
What is written stays in the kernel's pages for a while only where the user asks for it (`-o writeback_cache`).
Advisory locks come here unless the mount is read-only, where the kernel keeps them to itself. No POSIX ACLs.

INIT comes once in the life of a connection: what was agreed outlives the process (`jfs.fuse.connection`).
"""

import struct
from typing import Final

from jfs.fuse.connection import HAS_RESEND, MAJOR, MINOR, OLDEST_MINOR, PAGE, WRITEBACK_CACHE, Agreed
from jfs.fuse.kernel.protocol import OUT_HEADER
from jfs.fuse.mounting import MountError

_INIT_IN = struct.Struct("<IIIII44x")
_INIT_IN_OLD = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")

ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
DONT_MASK = 1 << 6
BIG_WRITES = 1 << 5
FLOCK_LOCKS = 1 << 10
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
INIT_EXT = 1 << 30  # flags has a second half
WANTED: Final = (
    ASYNC_READ
    | ATOMIC_O_TRUNC
    | EXPORT_SUPPORT
    | BIG_WRITES
    | AUTO_INVAL_DATA
    | DO_READDIRPLUS
    | READDIRPLUS_AUTO
    | ASYNC_DIO
    | PARALLEL_DIROPS
    | MAX_PAGES
    | CACHE_SYMLINKS
)


def answer(
    unique: int,
    body: bytes | memoryview,
    max_write: int,
    *,
    locks: bool,
    acls: bool = False,
    resend: bool = True,
    writeback: bool = False,
) -> tuple[bytes, Agreed]:
    """The reply to INIT; with *locks* advisory locks are asked for, with *acls* that the kernel checks ACLs and
    leaves the umask to us, with *resend* that unanswered requests can be had again, with *writeback* that the kernel keeps what is
    written. MountError when the kernel is older than 5.4 (protocol 7.31)."""
    major, minor, readahead, low = _INIT_IN_OLD.unpack_from(body)
    if major != MAJOR or minor < OLDEST_MINOR:
        raise MountError(f"the kernel speaks FUSE {major}.{minor}; this host needs {MAJOR}.{OLDEST_MINOR} (Linux 5.4)")
    offered = low
    if low & INIT_EXT and len(body) >= _INIT_IN.size:
        offered |= _INIT_IN.unpack_from(body)[4] << 32
    wanted = WANTED | (POSIX_LOCKS | FLOCK_LOCKS if locks else 0)
    if resend:
        wanted |= HAS_RESEND | INIT_EXT
    if writeback:
        wanted |= WRITEBACK_CACHE
    flags = wanted & offered
    if acls:
        if not offered & POSIX_ACL:
            raise MountError("the volume has POSIX ACLs, which this kernel does not check for FUSE")
        flags |= POSIX_ACL | DONT_MASK
    if not flags & MAX_PAGES:
        max_write = min(max_write, 32 * PAGE)
    agreed = Agreed(min(minor, MINOR), flags, max_write, max(readahead, max_write), max_pages=max_write // PAGE)
    reply = _INIT_OUT.pack(
        MAJOR,
        agreed.minor,
        agreed.max_readahead,
        flags & 0xFFFFFFFF,
        agreed.max_background,
        agreed.congestion_threshold,
        agreed.max_write,
        agreed.time_gran,
        agreed.max_pages,
        0,
        flags >> 32,
    )
    return OUT_HEADER.pack(OUT_HEADER.size + len(reply), 0, unique) + reply, agreed
