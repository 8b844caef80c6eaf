"""Requests that the kernel queues again for a successor, and those that must not be done twice then.

Place: between `host`, which shows every request, and the journal that outlives the process. What is repeated comes before anything
new, so with the first new request the journal's former lines are settled. One event loop, no wait.
"""

from jfs.fuse.kernel.table import Prepared
from jfs.meta.volume import Caller
from jfs.survival.journal import RESENT, Journal


class Repeats:
    """Of one host. *expected* as long as repeated requests may come; *count* of those that came."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.expected = False
        self.count = 0

    def judged(self, prepared: Prepared, unique: int, caller: Caller) -> Caller:
        """The caller, with the request where it must not be done twice."""
        resent = unique & RESENT
        if self.expected and not resent:  # they come first
            self.expected = False
            self._journal.settled()
        if resent:
            self.count += 1
        if not (prepared.once or resent):
            return caller
        return caller._replace(request=self._journal.begin(unique))
