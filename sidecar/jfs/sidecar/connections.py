"""Descriptors of FUSE connections that the supervisor holds, one for each volume: as long as one is open, a mount without a
worker makes applications wait instead of failing.

A descriptor arrives with a frame or a worker's event and belongs to nobody until it is adopted; what nobody adopts is closed.
All are close-on-exec, since one that leaked into another process would keep a dead mount hanging.
"""

import os
from collections.abc import Iterable


class Connections:
    """See the module."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._arrived: list[int] = []

    def arrived(self, descriptors: Iterable[int]) -> None:
        """They came with what is looked at next."""
        self._arrived += [descriptor for descriptor in descriptors if descriptor >= 0]

    def adopt(self, volume: str) -> None:
        """Hold what arrived for the volume, in place of a former one."""
        if self._arrived:
            self.drop(volume)
            self._held[volume] = self._arrived.pop(0)

    def nobody_took(self) -> None:
        """Close what arrived and was not adopted."""
        while self._arrived:
            os.close(self._arrived.pop())

    def of(self, volume: str) -> int:
        """The volume's descriptor, -1 if none is held."""
        return self._held.get(volume, -1)

    def drop(self, volume: str) -> None:
        descriptor = self._held.pop(volume, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Give all of them up."""
        self.nobody_took()
        for volume in list(self._held):
            self.drop(volume)
