"""What is published, remembered across restarts of the node service: one JSON file per volume of a pod.

A file is written by temporary name, fsync and rename, so that it is whole or absent, and holds no secret: those come
back with the kubelet's next publish. The in-memory copy is the truth while we run; the asyncio side changes it under the
pod's lock, and every change that matters is on disk before its effect is visible to others.
"""

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from jfs_api import names

from jfs_csi.directories import Tree
from jfs_csi.layout import Layout, valid_pod_uid

log = logging.getLogger(__name__)

VERSION = 1
CONTROL = "control"
DATA = "data"


@dataclass(frozen=True, slots=True)
class VolumeState:
    """One published volume of one pod."""

    pod_uid: str
    volume: str
    kind: str  # CONTROL | DATA
    volume_id: str
    target: str
    pod_name: str = ""
    pod_namespace: str = ""
    persistent: bool = False  # of a PersistentVolume, which then is named `volume`; else inline in the pod
    read_only: bool = False
    options: tuple[str, ...] = field(default=())
    generation: int = 0  # of the last ATTACH; rises for ever
    ready: bool = False  # the sidecar said READY for that generation
    mode: str = names.PRIVILEGED  # of the pod's sidecar; told by the control volume
    name: str = ""  # of the file system, as the mount table shows it
    boot_id: str = ""  # of the boot in which it was published: what a former one mounted is gone
    since: str = ""  # when its mount was first served, RFC 3339
    restarts: int = 0  # how often another process took the mount over
    last_stall_ms: int | None = None  # how long operations waited for the last one

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError if the text is not a state file of a version known here."""
        document: dict[str, Any] = json.loads(text)
        if not isinstance(document, dict) or document.pop("version", None) != VERSION:
            raise ValueError("its version is unknown")
        try:
            document["options"] = tuple(document.get("options", ()))
            return cls(**document)
        except TypeError as error:
            raise ValueError(str(error)) from error


def current_boot() -> str:
    """Changes with every boot of the node (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class StateStore:
    """State files below `<kubelet>/plugins/<driver>/state`, and their contents by (pod UID, volume)."""

    def __init__(self, tree: Tree, layout: Layout, boot_id: str | None = None) -> None:
        self._tree, self._layout = tree, layout
        self.boot_id = current_boot() if boot_id is None else boot_id
        self._states: dict[tuple[str, str], VolumeState] = {}

    def load(self) -> None:
        """Read all files. An unreadable one is logged and counts as absent: the kubelet's next publish renews it."""
        self._states.clear()
        root = (*self._layout.plugin, "state")
        for pod_uid in self._tree.names(root):
            if not valid_pod_uid(pod_uid):
                continue
            for name in self._tree.names((*root, pod_uid)):
                if name.endswith(".json"):
                    self._load_one(pod_uid, name)
                elif name.endswith(".tmp"):
                    self._tree.unlink((*root, pod_uid, name))  # of a write that a crash cut off

    def _load_one(self, pod_uid: str, name: str) -> None:
        try:
            with self._tree.open(self._layout.state(pod_uid)) as directory:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                with os.fdopen(descriptor, encoding="utf-8") as file:
                    state = VolumeState.from_json(file.read())
            if (state.pod_uid, _file_name(state.volume)) != (pod_uid, name):
                raise ValueError("it speaks of another volume than its name")
        except (OSError, ValueError) as error:
            log.warning("State file %s/%s is unusable (%s); it waits for the next publish.", pod_uid, name, error)
            return
        if state.boot_id not in ("", self.boot_id):
            # Nothing of another boot is mounted: the kubelet publishes again, and nobody has lost a mount.
            state = replace(state, ready=False, boot_id="")
        self._states[pod_uid, state.volume] = state

    def get(self, pod_uid: str, volume: str) -> VolumeState | None:
        return self._states.get((pod_uid, volume))

    def by_target(self, target: str) -> VolumeState | None:
        return next((state for state in self._states.values() if state.target == target), None)

    def of_pod(self, pod_uid: str) -> list[VolumeState]:
        return [state for state in self._states.values() if state.pod_uid == pod_uid]

    def mode(self, pod_uid: str) -> str:
        """Of the pod's sidecar, as its control volume tells it; privileged while that is not published."""
        control = (state for state in self.of_pod(pod_uid) if state.kind == CONTROL)
        return next((state.mode for state in control), names.PRIVILEGED)

    def all(self) -> list[VolumeState]:
        return list(self._states.values())

    def save(self, state: VolumeState) -> None:
        """Write the file and remember it. Raises OSError. Blocking (one fsync)."""
        directory_names = self._layout.state(state.pod_uid)
        with self._tree.open(directory_names, make=0o700) as directory:
            name = _file_name(state.volume)
            temporary = f"{name}.tmp"
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
            )
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(state.to_json())
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        self._states[state.pod_uid, state.volume] = state

    def update(self, pod_uid: str, volume: str, *, generation: int, ready: bool) -> None:
        """Change what the control socket knows of a volume; nothing is written if nothing changed."""
        state = self.get(pod_uid, volume)
        if state is not None and (state.generation, state.ready) != (generation, ready):
            since = state.since
            if ready and not state.ready:
                since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self.save(replace(state, generation=generation, ready=ready, since=since))

    def taken_over(self, pod_uid: str, volume: str, restarts: int, stall_seconds: float) -> None:
        """Another process serves the mount, so many times more; operations waited so long for the last one."""
        state = self.get(pod_uid, volume)
        if state is not None:
            self.save(replace(state, restarts=state.restarts + restarts, last_stall_ms=round(stall_seconds * 1000)))

    def remove(self, pod_uid: str, volume: str) -> None:
        self._tree.unlink((*self._layout.state(pod_uid), _file_name(volume)))
        self._states.pop((pod_uid, volume), None)

    def remove_pod(self, pod_uid: str) -> None:
        """Forget the pod's directory of state files, unusable ones included."""
        for name in self._tree.names(self._layout.state(pod_uid)):
            self._tree.unlink((*self._layout.state(pod_uid), name))
        self._tree.remove(self._layout.state(pod_uid))
        for state in self.of_pod(pod_uid):
            self._states.pop((pod_uid, state.volume), None)


def _file_name(volume: str) -> str:
    # A PersistentVolume's name may have 253 characters, a file's 255 with the endings.
    stem = volume if len(volume) <= 240 else f"{volume[:200]}-{hashlib.sha256(volume.encode()).hexdigest()[:16]}"
    return f"{stem}.json"
