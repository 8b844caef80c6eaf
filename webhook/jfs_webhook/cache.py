"""Directories of the disk cache: the `cache-dir` options of the pod's volumes become volumes of the sidecar. Pure.

The sidecar's root file system is read-only, so each directory needs a volume: an emptyDir, or what the volume's
`spec.cache` names. A directory must lie where nothing of the image is: a mount over /usr would be a way to have a
privileged container run somebody else's programs.
"""

import re
from collections.abc import Iterable, Sequence

from jfs_api import names

from jfs_webhook.settings import JsonObject
from jfs_webhook.volumes import PodVolume

_VOLUME = "juicefs-cache-{}"
CACHE_VOLUME = re.compile(r"juicefs-cache-\d+")
# Below these the image has nothing; /var/lib/juicefs is the sidecar's state.
_ALLOWED = re.compile(r"/(?:var|data|cache|mnt|srv)(?:/[A-Za-z0-9._-]+)*")
_FORBIDDEN = ("/var", "/var/lib", "/var/run", "/var/lock", "/var/tmp", "/var/log", names.STATE_PATH)


class BadCacheDirectory(ValueError):
    """A cache-dir option that cannot be served; the message is one sentence."""


def directories(options: Iterable[str]) -> tuple[str, ...]:
    """The directories of a volume's mount options, in order; `memory` is none. Raises BadCacheDirectory."""
    found: list[str] = []
    for option in options:
        name, _, value = option.partition("=")
        if name.strip() == "cache-dir":
            found += [directory.strip().rstrip("/") or "/" for directory in value.split(":") if directory.strip()]
    found = [directory for directory in dict.fromkeys(found) if directory != "memory"]
    for directory in found:
        parts = directory.split("/")
        below = any(directory == each or directory.startswith(f"{each}/") for each in _FORBIDDEN[2:])
        if not _ALLOWED.fullmatch(directory) or directory in _FORBIDDEN or below or {".", ".."} & set(parts):
            raise BadCacheDirectory(
                f"cache-dir={directory} cannot be a directory of the sidecar; choose one like {names.CACHE_DIRECTORY}, below"
                " /var, /data, /cache, /mnt or /srv"
            )
    return tuple(found)


def cache_volumes(volumes: Sequence[PodVolume], mode: str) -> tuple[list[JsonObject], list[JsonObject]]:
    """Volumes of the pod and mounts of the sidecar, one for each directory. What two volumes share, the first one decides."""
    sources: dict[str, JsonObject] = {}
    for volume in volumes:
        for directory in volume.cache_directories:
            if not any(_overlap(directory, other) for other in sources):
                sources[directory] = _source(volume, directory, mode)
    named = [(_VOLUME.format(index), directory) for index, directory in enumerate(sources)]
    return (
        [{"name": name, **sources[directory]} for name, directory in named],
        [{"name": name, "mountPath": directory} for name, directory in named],
    )


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _source(volume: PodVolume, directory: str, mode: str) -> JsonObject:
    wished = volume.wish.cache or {}
    if "persistentVolumeClaim" in wished:
        return {"persistentVolumeClaim": {"claimName": wished["persistentVolumeClaim"]["claimName"]}}
    # A restricted sidecar may have no directory of the node: the namespace's level forbids it.
    if "hostPath" in wished and mode == names.PRIVILEGED:
        path = wished["hostPath"].get("path") or directory
        return {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    return {"emptyDir": dict(wished.get("emptyDir") or {})}
