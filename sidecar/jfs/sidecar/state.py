"""Where workers leave what their successors need: a directory for each volume below the pod's state volume.

An emptyDir outlives the container, so that a new one goes on where the former stopped. Where there is none (a pod made by an
older release) a directory of this container is used, which outlives workers only; it is said once.
"""

import os
import sys
import tempfile

CONFIGURED = os.environ.get("JFS_STATE", "/var/lib/juicefs")


class StateRoot:
    """`path` is the directory, None if there is none wanted or no place for one."""

    def __init__(self, configured: str | None) -> None:
        self.path: str | None = None
        self._own = False
        if configured is None:
            return
        if os.path.isdir(configured) and os.access(configured, os.W_OK | os.X_OK):
            self.path = configured
            return
        try:
            self.path = tempfile.mkdtemp(prefix="jfs-state-")
            self._own = True
            rest = "workers can be replaced, but not this container, without losing what is open"
        except OSError:
            rest = "what is open is lost with a worker"
        print(f"There is no state directory {configured}: {rest}.", file=sys.stderr, flush=True)

    def of(self, volume: str) -> str | None:
        """The directory for one volume, which its worker makes."""
        return None if self.path is None else os.path.join(self.path, volume)

    def close(self) -> None:
        """Remove what no successor could find."""
        if self._own and self.path is not None:
            for directory, _, files in os.walk(self.path, topdown=False):
                for file in files:
                    os.unlink(os.path.join(directory, file))
                os.rmdir(directory)
