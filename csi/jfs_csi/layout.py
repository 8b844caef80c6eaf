"""Where everything lies on the node, and which paths of a request are acceptable.

First stop of every request: a target path from the kubelet becomes a `Target` here or is refused with a sentence. The
rest of the driver works with directories *relative to the kubelet's directory* (tuples of names), which
`directories.py` opens without following symbolic links. Pure: nothing here touches a file system.

    <kubelet>/pods/<pod UID>/volumes/kubernetes.io~csi/<volume>/mount     target path
    <kubelet>/pods/<pod UID>/volume-subpaths/<volume>/<container>/<n>     the kubelet's binds for subPath
    <kubelet>/plugins/<driver>/csi.sock                                   CSI endpoint
    <kubelet>/plugins/<driver>/pods/<pod UID>/s                           control socket
    <kubelet>/plugins/<driver>/pods/<pod UID>/volumes/<volume>/           the sidecar mounts FUSE here
    <kubelet>/plugins/<driver>/state/<pod UID>/<volume>.json              state file
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jfs_api import names

Names = tuple[str, ...]

# A pod UID is a UUID for pods of the API server and a hash for static pods; both fit, and nothing that could climb.
_POD_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_CSI_PLUGIN = "kubernetes.io~csi"


class InvalidPath(ValueError):
    """A path of a request is not one the kubelet would give; the text is a sentence for the caller."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target path, taken apart: the pod, the volume (PV name, or the pod volume's name if inline), the path."""

    pod_uid: str
    volume: str
    path: str
    relative: Names

    @property
    def key(self) -> tuple[str, str]:
        return self.pod_uid, self.volume


@dataclass(frozen=True, slots=True)
class Layout:
    """The driver's paths below the kubelet's directory (absolute, as the kubelet names it)."""

    kubelet: Path
    driver: str = names.DRIVER

    @property
    def plugin(self) -> Names:
        return ("plugins", self.driver)

    def pod(self, pod_uid: str) -> Names:
        """The pod's control directory, P in the documents."""
        return (*self.plugin, "pods", pod_uid)

    def mountpoint(self, pod_uid: str, volume: str) -> Names:
        """The directory the sidecar mounts the volume's file system on."""
        return (*self.pod(pod_uid), names.CONTROL_VOLUMES, volume)

    def state(self, pod_uid: str) -> Names:
        return (*self.plugin, "state", pod_uid)

    def sub_paths(self, target: Target) -> Names:
        """Where the kubelet binds directories of the volume for containers that mount a `subPath` of it."""
        return ("pods", target.pod_uid, "volume-subpaths", target.volume)

    def absolute(self, relative: Names) -> str:
        return str(self.kubelet.joinpath(*relative))

    def target(self, path: str) -> Target:
        """Take a target path apart. Raises `InvalidPath` for anything but
        `<kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/<one more name>`.
        """
        if not path.startswith("/"):
            raise InvalidPath(f"Target path {path!r} is relative; the kubelet's target paths are absolute.")
        if "\0" in path or str(PurePosixPath(path)) != path or ".." in path.split("/"):
            raise InvalidPath(f"Target path {path!r} is not normalized; it must have no '..', '.', '//' or final '/'.")
        try:
            relative = PurePosixPath(path).relative_to(PurePosixPath(str(self.kubelet)))
        except ValueError:
            raise InvalidPath(f"Target path {path!r} is not below the kubelet's directory {self.kubelet}.") from None
        parts = relative.parts
        if len(parts) != 6 or parts[0] != "pods" or parts[2:4] != ("volumes", _CSI_PLUGIN):
            raise InvalidPath(
                f"Target path {path!r} is not a CSI volume of a pod"
                f" ({self.kubelet}/pods/<uid>/volumes/{_CSI_PLUGIN}/<volume>/mount)."
            )
        if not _POD_UID.fullmatch(parts[1]):
            raise InvalidPath(f"Target path {path!r} has no valid pod UID.")
        return Target(parts[1], parts[4], path, parts)


def valid_pod_uid(uid: str) -> bool:
    """Whether the name can be a pod's UID: entries of the driver's directories that are not are left alone."""
    return _POD_UID.fullmatch(uid) is not None
