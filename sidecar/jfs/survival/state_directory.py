"""The directory of one mount's surviving state: taken by one process at a time, adopted by its successor, removed at a clean end.

    handles   what is open (`handle_table`); its header says which volume and session it belongs to
    journal   changes under way (`journal`)
    attributes  what was set on files and is not committed yet (`attributes`)
    listings  listings under way (`snapshots`)
    data      what was taken and is not stored yet (`arena`)
    presence  what the database knows the process' connections by, so that a successor can have them ended
    lock      held with flock(2) by the process that serves, so that two never do

It holds no secrets. Invariant: a state of another volume, or without a connection that would need it, is never used: it is begun
anew. One event loop.
"""

import errno
import fcntl
import json
import os
from contextlib import suppress

from jfs.errors import ConfigError
from jfs.survival.arena import Arena
from jfs.survival.attributes import SetAttributes
from jfs.survival.handle_table import HandleTable
from jfs.survival.journal import Journal
from jfs.survival.records import OWN_SIZE
from jfs.survival.snapshots import Snapshots

_FILES = ("handles", "journal", "attributes", "presence", "lock")


class StateDirectory:
    """See the module. *path* None: everything is kept in memory, and ends with the process."""

    def __init__(self, path: str | None = None) -> None:
        """Take the directory, which is made when it is missing. ConfigError when it cannot be used or another process has it."""
        self.path = path
        self._lock = -1
        self._arena: Arena | None = None
        if path is None:
            self.handles, self.journal, self.snapshots = HandleTable(), Journal(), Snapshots(None)
            self.attributes = SetAttributes()
            return
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            self._lock = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.handles = HandleTable(os.path.join(path, "handles"))
            self.journal = Journal(os.path.join(path, "journal"))
            self.attributes = SetAttributes(os.path.join(path, "attributes"))
            self.snapshots = Snapshots(os.path.join(path, "listings"))
        except OSError as error:
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1
            if error.errno == errno.EWOULDBLOCK:
                raise ConfigError(f"the state in {path} is in use: another process serves this mount") from error
            raise ConfigError(f"the state directory {path} cannot be used: {os.strerror(error.errno or 0)}") from error

    def session(self, uuid: str) -> int:
        """The session of volume *uuid* that the predecessor served; 0 when there is none to go on with."""
        raw = self.handles.owner.rstrip(b"\0")
        if not raw:
            return 0
        try:
            left = json.loads(raw)
            return int(left["sid"]) if left["uuid"] == uuid else 0
        except (ValueError, KeyError, TypeError):
            return 0

    def arena(self, block_size: int) -> Arena | None:
        """Where data are kept that are not stored yet; None when nothing survives. ConfigError."""
        if self.path is not None and self._arena is None:
            try:
                self._arena = Arena(os.path.join(self.path, "data"), block_size)
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                raise ConfigError(f"the state directory {self.path} cannot be used: {reason}") from error
        return self._arena

    def begin(self, uuid: str, sid: int) -> None:
        """From now on the state is that of session *sid* of volume *uuid*."""
        owner = json.dumps({"uuid": uuid, "sid": sid}).encode().ljust(OWN_SIZE, b"\0")
        if owner != self.handles.owner:  # a kill while it is written would lose all; a successor need not
            self.handles.owner = owner

    @property
    def presence(self) -> str:
        """What the database knew the predecessor by; "" when that is not known."""
        with suppress(OSError), open(os.path.join(self.path or "", "presence"), encoding="ascii") as file:
            return file.read()
        return ""

    def keep_presence(self, presence: str) -> None:
        """What the database knows this process by. A directory that is full keeps the last one: a successor is then less sure."""
        if self.path is None:
            return
        path = os.path.join(self.path, "presence")
        with suppress(OSError):
            with open(f"{path}.new", "w", encoding="ascii") as file:
                file.write(presence)
            os.rename(f"{path}.new", path)

    def clear(self) -> None:
        """Forget a predecessor."""
        self.handles.clear()
        self.journal.clear()
        self.attributes.clear()
        self.snapshots.clear()
        if self._arena is not None:
            self._arena.clear()

    def close(self, *, keep: bool) -> None:
        """Give the directory up, and unless a successor is to *keep* it remove what is in it. Idempotent."""
        self.handles.close()
        self.journal.close()
        self.attributes.close()
        if self._arena is not None:
            self._arena.close(keep=keep)
            self._arena = None
        if self.path is not None and not keep and self._lock >= 0:
            self.snapshots.clear()
            with suppress(OSError):
                os.rmdir(os.path.join(self.path, "listings"))
            for name in _FILES:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.path, name))
            with suppress(OSError):  # somebody put something else there
                os.rmdir(self.path)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
