"""A mount by `jfs mount -d --supervised`, with the processes of which it is made."""

import os
import signal
from pathlib import Path

from mount_parts import JFS, Volume, eventually, is_mounted, run


def state() -> set[str]:
    """Directories of the state of such mounts."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("jfs-mount-")}


class Supervised:
    """A mount, the process that supervises it, and its log."""

    def __init__(self, volume: Volume, where: Path, *more: str) -> None:
        where.mkdir()
        self.where, self.log, before = where, where.with_name("mount.log"), state()
        options = ["-d", "--supervised", "--metrics", "", "--log", str(self.log), *more]
        run(*JFS, "mount", *options, volume.url, str(where))
        self.folder = Path("/dev/shm") / (state() - before).pop()
        (self.client,) = self._serving()
        self.parent = int(Path(f"/proc/{self.client}/stat").read_text().rpartition(")")[2].split()[1])

    def _serving(self) -> list[int]:
        """The process that holds the lock of the state: who serves."""
        inode = (self.folder / "lock").stat().st_ino
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return [int(line[4]) for line in lines if line[1] == "FLOCK" and line[5].endswith(f":{inode}")]

    def kill(self) -> None:
        """SIGKILL to the client; returns when the next one serves."""
        former = self.client
        os.kill(former, signal.SIGKILL)

        def followed() -> bool:
            serving = self._serving()
            return bool(serving) and serving != [former]

        eventually(followed, "the next client has the state")
        (self.client,) = self._serving()

    def ended(self) -> None:
        """Wait for the end of all of it."""
        eventually(lambda: not os.path.exists(f"/proc/{self.parent}"), "the parent has ended")
        assert not self.folder.exists()
        assert not is_mounted(self.where)
        assert "Traceback" not in self.log.read_text()
