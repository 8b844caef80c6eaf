"""Every error the client raises, under one root.

`FsError` carries an errno and is part of the semantics: expected, answered to the kernel, never logged. The others say
that something outside broke. Foreign exceptions (database drivers, botocore, OSError of a storage directory) are converted
only in `meta/engines/*` and `object/*`, chained, so that no layer above knows which library is below.
Messages are one sentence: what, where, what to do. They never hold a secret.
"""

import errno as _errno
import os


class JfsError(Exception):
    """The root; never raised itself."""


class FsError(JfsError):
    """A file-system operation ended with an errno (POSIX semantics). Not a fault: it is answered to the kernel as it is."""

    __slots__ = ("errno",)

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno

    def __str__(self) -> str:
        return f"{_errno.errorcode.get(self.errno, self.errno)}: {os.strerror(self.errno)}"


class ConfigError(JfsError):
    """What the user gave (an option, a URL, a document) is wrong; the message says what to change."""


class VolumeError(JfsError):
    """The database holds no volume, another volume, or one this client must not touch; the message says which."""


class StoreError(JfsError):
    """The root of what a metadata engine raises."""


class Conflict(StoreError):
    """Another client changed what the transaction read: run the attempt again. Never leaves `Store.run`."""


class StoreUnavailable(StoreError):
    """The database cannot be reached or did not answer; the outcome of a commit under way is unknown."""


class StoreAway(StoreUnavailable):
    """The database cannot be reached for now, and nothing was changed: the same may be asked again later."""


class CredentialsRefused(StoreUnavailable):
    """The database answered, and refused the user or the password."""


class CorruptRecord(StoreError):
    """A record in the database does not decode; the message names the record. Nothing was changed."""


class ObjectError(JfsError):
    """The root of what an object storage raises."""


class ObjectNotFound(ObjectError):
    """The storage has no object of this key."""


class ObjectUnavailable(ObjectError):
    """The storage cannot be reached, refused the request, or kept failing after all tries."""


class StorageFull(ObjectUnavailable):
    """The storage has no room for another object: trying for long does not make any."""


class ObjectForbidden(ObjectUnavailable):
    """The storage answered, and refused the credentials or the access to the bucket."""


class StorageReadOnly(ObjectForbidden):
    """The storage's directory is on a file system that is mounted read-only."""


class StorageMissing(ObjectUnavailable):
    """The bucket or the directory itself is not there (any more)."""
