"""The plan of a hand-written PersistentVolume of our driver: format its volume once and remember the file system on it.

JuiceFS CSI's documented YAML works with only the driver's name changed. The PersistentVolume stays its author's: no finalizer,
no status, one annotation (`juicefs.io/file-system`). What goes wrong is an event on it. Pure functions.
"""

from jfs_api.conditions import Condition
from jfs_api.mount_options import parse_mount_options
from jfs_api.options import OptionError

from jfs_operator.api import Object, uid_of
from jfs_operator.command import FileSystem, Inspection
from jfs_operator.sharing import static_options
from jfs_operator.steps import Failure, Format, Inspect, Next, Plan, Resolution, Verdict

ADOPTED = "Adopted"


def plan_static(persistent_volume: Object, resolution: Resolution, verdict: Verdict | None) -> Plan:
    """The single condition says what the event on the PersistentVolume tells."""
    try:
        parse_mount_options(static_options(persistent_volume))
    except OptionError as error:
        return _failed("MountOptionInvalid", str(error), Next.NOTHING)
    credentials = resolution.credentials
    if credentials is None:
        return _failed(resolution.reason, resolution.message)
    if verdict is None:
        step = Format(credentials, uid_of(persistent_volume)) if credentials.storage else Inspect(credentials)
        return Plan(
            (Condition(ADOPTED, "Unknown", "Formatting", "the file system is being looked at"),), Next.NOTHING, step
        )
    if isinstance(verdict, Failure):
        return _failed("FormatFailed", verdict.message)
    if isinstance(verdict, Inspection) and not verdict.metadata.ok:
        return _failed("MetadataUnreachable", verdict.metadata.message)
    found = verdict if isinstance(verdict, FileSystem) else verdict.file_system
    if found is None:
        return _failed(
            "StorageMissing", "the database holds no file system yet, and without the key storage none can be formatted"
        )
    if found.name != credentials.name:
        message = f"the database holds the file system {found.name!r}, the Secret names {credentials.name!r}"
        return _failed("DifferentFileSystem", message)
    message = f"the file system {found.name} has the UUID {found.uuid}"
    return Plan((Condition(ADOPTED, "True", "Formatted", message),), Next.NOTHING, None, found)


def _failed(reason: str, message: str, next: Next = Next.RETRY) -> Plan:
    return Plan((Condition(ADOPTED, "False", reason, message),), next)
