"""Who else uses the data of a volume: the rule that keeps `reclaimPolicy: Delete` from removing what belongs to others.

Two volumes share data when they are on one file system (same UUID) and one's directory is the other's or lies below it. A volume
of a directory *above* does not count: whoever mounts the whole file system looks at everybody's directories. Pure functions.
"""

from collections.abc import Iterable
from typing import NamedTuple

from jfs_api import names
from jfs_api.mount_options import parse_mount_options, split_mount_options, subdirectory
from jfs_api.options import OptionError
from jfs_api.volume import SpecError, parse_volume_spec

from jfs_operator.api import Object, annotation, is_deleting, metadata, uid_of
from jfs_operator.desired import full_name, object_name


class Sharers(NamedTuple):
    """Names for a message: those that stay, and those that are being deleted themselves but still have their volume."""

    staying: tuple[str, ...]
    leaving: tuple[str, ...]


def find_sharers(
    volume: Object, uuid: str, directory: str, volumes: Iterable[Object], persistent_volumes: Iterable[Object]
) -> Sharers:
    """The JuiceFSVolumes and static PersistentVolumes that use data in `directory` of the file system `uuid`."""
    persistent = {metadata(body)["name"]: body for body in persistent_volumes}
    staying: list[str] = []
    leaving: list[str] = []
    for other in volumes:
        recorded = (other.get("status") or {}).get("fileSystem") or {}
        if (
            uid_of(other) == uid_of(volume)
            or recorded.get("uuid") != uuid
            or not _within(_volume_directory(other), directory)
        ):
            continue
        if not is_deleting(other):
            staying.append(full_name(other))
        elif object_name(other) in persistent:
            leaving.append(full_name(other))
    for name, body in persistent.items():
        if annotation(body, names.VOLUME_ANNOTATION) or annotation(body, names.FILE_SYSTEM_ANNOTATION) != uuid:
            continue
        if _within(static_directory(body), directory):
            staying.append(f"PersistentVolume {name}")
    return Sharers(tuple(sorted(staying)), tuple(sorted(leaving)))


def pods_using(claim: str, pods: Iterable[Object]) -> tuple[str, ...]:
    """The names of the pods of the claim's namespace that use it and have not ended."""
    return tuple(
        sorted(
            metadata(pod)["name"]
            for pod in pods
            if (pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}
            and any(
                (volume.get("persistentVolumeClaim") or {}).get("claimName") == claim
                for volume in pod.get("spec", {}).get("volumes") or []
            )
        )
    )


def static_directory(persistent_volume: Object) -> str:
    """The directory that a hand-written PersistentVolume mounts; the whole file system when its options cannot be read."""
    try:
        return subdirectory(parse_mount_options(static_options(persistent_volume))) or "/"
    except OptionError:
        return "/"


def static_options(persistent_volume: Object) -> list[str]:
    """The mount options of a PersistentVolume: its own and those in the attributes, as JuiceFS CSI's users write them."""
    spec = persistent_volume["spec"]
    attributes = spec["csi"].get("volumeAttributes") or {}
    return [*(spec.get("mountOptions") or []), *split_mount_options(attributes.get("mountOptions", ""))]


def _volume_directory(volume: Object) -> str:
    try:
        return parse_volume_spec(volume.get("spec") or {}).directory
    except SpecError:
        return "/"


def _within(inner: str, outer: str) -> bool:
    return outer == "/" or inner == outer or inner.startswith(outer + "/")
