"""The volume's usage as this mount knows it: the counters as last read plus its own changes since (format §5.3 quota).

Used for limits without a round trip per write, so that limits are soft by what other clients write within a heartbeat.
"""

from jfs.format.setting import Setting
from jfs.meta.volume.options import StatFS, volume_room


class Usage:
    """Bytes and inodes in use."""

    def __init__(self) -> None:
        self.space = 0
        self.inodes = 0

    def refresh(self, space: int | None, inodes: int | None) -> None:
        """The counters as just read (None: missing, that is 0)."""
        self.space = space or 0
        self.inodes = inodes or 0

    def add(self, space: int, inodes: int) -> None:
        """An own commit's change."""
        self.space += space
        self.inodes += inodes

    def room(self, setting: Setting) -> StatFS:
        """What statfs shows."""
        return volume_room(setting.capacity, setting.inodes, self.space, self.inodes)

    def space_left(self, setting: Setting) -> int | None:
        """Bytes until the capacity, None without one."""
        return max(setting.capacity - self.space, 0) if setting.capacity else None

    def inodes_left(self, setting: Setting) -> int | None:
        """Inodes until the limit, None without one."""
        return max(setting.inodes - self.inodes, 0) if setting.inodes else None
