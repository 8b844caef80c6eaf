"""The node service keeps a descriptor of every FUSE connection, so that a mount outlives the sidecar that serves it.

Filled by deposits of privileged sidecars and by the node service's own mounts; read when a successor is attached. Each
descriptor is duplicated to the holder (`holder.py`), which gives all of them back to a node service that starts anew.
Invariant: a kept descriptor is closed here and in the holder before an unpublish ends – the kernel ends requests of a
dead mount only when the last one is closed. Keys are (pod UID, volume). Calls for one pod come under that pod's lock;
calls for different pods may come from several threads.
"""

import logging
import os
import threading
from dataclasses import dataclass, replace
from typing import Any

from jfs_csi.fuse.device import is_connected
from jfs_csi.fuse.holder import HolderClient
from jfs_csi.fuse.init import Init

log = logging.getLogger(__name__)

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Kept:
    """A connection that is kept."""

    descriptor: int
    init: Init
    device: str  # as in mountinfo, "0:39"; "" where nobody can tell
    sent: bool = False  # a sidecar has had a duplicate and may have read requests

    def meta(self) -> dict[str, Any]:
        return {"init": self.init.to_json(), "device": self.device, "sent": self.sent}


class Keeper:
    """`holder` None: no second holder, the descriptors end with this process."""

    def __init__(self, holder: HolderClient | None = None) -> None:
        self._holder = holder
        self._kept: dict[Key, Kept] = {}
        self._lock = threading.Lock()
        self._complained = False

    def __len__(self) -> int:
        return len(self._kept)

    def kept_keys(self) -> list[Key]:
        return list(self._kept)

    def keep(self, key: Key, descriptor: int, init: Init, device: str, *, sent: bool = False) -> None:
        """Take a descriptor over; a former one of the key is closed."""
        with self._lock:
            former = self._kept.get(key)
            self._kept[key] = kept = Kept(descriptor, init, device, sent)
            if former is not None:
                os.close(former.descriptor)
            self._tell(lambda holder: holder.keep(key, kept.descriptor, kept.meta()))

    def live(self, key: Key) -> Kept | None:
        """What is kept of the volume, if the connection still lives. Never blocks."""
        kept = self._kept.get(key)
        return kept if kept is not None and is_connected(kept.descriptor) else None

    def sent(self, key: Key) -> None:
        """A sidecar gets a duplicate."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and not kept.sent:
                self._kept[key] = now = replace(kept, sent=True)
                self._tell(lambda holder: holder.keep(key, now.descriptor, now.meta()))

    def release(self, key: Key) -> None:
        """Close what is kept of the volume, here and in the holder. Nothing kept is fine."""
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is not None:
                os.close(kept.descriptor)
            self._tell(lambda holder: holder.drop(key))

    def close(self) -> None:
        """Close all of ours; the holder keeps its duplicates for our successor."""
        with self._lock:
            for kept in self._kept.values():
                os.close(kept.descriptor)
            self._kept.clear()
            if self._holder is not None:
                self._holder.close()

    # --- the holder --------------------------------------------------------------------------------------------

    def fetch(self) -> int:
        """At the start: take what the holder kept for a former node service; how many live connections there were."""
        if self._holder is None:
            return 0
        try:
            held = self._holder.fetch()
        except OSError as error:
            self._complain(error)
            return 0
        for key, descriptor, meta in held:
            try:
                init = Init.from_json(meta.get("init"))
            except ValueError as error:
                log.warning("The holder's record of pod %s, volume %s is unusable: %s.", *key, error)
                os.close(descriptor)
                continue
            if not is_connected(descriptor):
                os.close(descriptor)
                continue
            self._kept[key] = Kept(descriptor, init, str(meta.get("device", "")), bool(meta.get("sent")))
        return len(self._kept)

    def synchronize(self) -> None:
        """Bring a holder that was away (or started anew) to what is kept here. Cheap while nothing changed."""
        with self._lock:
            if self._holder is None or self._holder.is_open():
                return
            try:
                held = self._holder.fetch()
                for _, descriptor, _ in held:
                    os.close(descriptor)
                for key in {key for key, _, _ in held} - set(self._kept):
                    self._holder.drop(key)
                for key, kept in self._kept.items():
                    self._holder.keep(key, kept.descriptor, kept.meta())
            except OSError as error:
                self._complain(error)
                self._holder.close()
                return
            if self._complained:
                log.info("The holder of descriptors is back; it has all %d.", len(self._kept))
            self._complained = False

    def _tell(self, order: Any) -> None:
        # One that is away is brought up to date by `synchronize`; nobody waits for it.
        if self._holder is None or not self._holder.is_open():
            return
        try:
            order(self._holder)
        except OSError as error:
            self._complain(error)
            self._holder.close()

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            log.warning("The holder of descriptors cannot be reached (%s); trying on.", error)
            self._complained = True
