"""From sqlite3's exceptions to ours. The only place that looks at SQLite's result codes."""

import errno
import sqlite3

from jfs.errors import FsError, JfsError, StoreUnavailable, VolumeError


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process (or connection) holds a lock: try again later."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def converted(error: sqlite3.Error, path: str) -> JfsError:
    """Our exception for *error*; raise it from *error*."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return VolumeError(f"{path} is not an SQLite database; check the metadata address")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT):
        return VolumeError(
            f"the SQLite database {path} is damaged ({error}); restore it or recover it with sqlite3's .recover"
        )
    if code == sqlite3.SQLITE_FULL:
        return FsError(errno.ENOSPC)
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreUnavailable(
            f"the SQLite database {path} cannot be opened; check that its directory exists and is writable"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return StoreUnavailable(f"the SQLite database {path} cannot be written to; check its permissions")
    if is_busy(error):
        return StoreUnavailable(f"the SQLite database {path} stays locked by another process; look for one that hangs")
    return StoreUnavailable(f"the SQLite database {path} failed: {error}")
