"""How the sidecar ends after SIGTERM: flush everything, ask the node service, and then leave the mounts or take them away.

Only the node service sees whether other containers of the pod still run. If they do, this container is replaced (a new image,
a restart): mounts, open files and sessions are left to the successor (`keep`). If they do not, the pod ends: unmount and
close the sessions. Without an answer, or with a node service that cannot be asked, a mount is only taken away when no
application uses it. No I/O.
"""

from jfs.sidecar import frames
from jfs.sidecar.actions import Action, AwaitEnd, Command, Leave, LetGo, Send, Stop
from jfs.sidecar.volume import Phase, Volume

ANSWER_SECONDS = 3.0  # that the node service may take to answer ENDING
_LEAST_SECONDS = 0.5
_FLUSH_SHARE = 0.6  # of the grace period; what is left is for ending


class Ending:
    """See the module; `seconds` are those of the grace period."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._flushing: set[str] = set()
        self.asking = False
        self._asked = False
        self.keep = False

    def begin(self, running: dict[str, Volume], *, can_ask: bool) -> list[Action]:
        """What is to be done first."""
        if not can_ask or not any(volume.init is not None for volume in running.values()):
            return self._stop(running)
        self.asking = True
        flushing = [volume.name for volume in running.values() if volume.phase is Phase.READY]
        self._flushing = set(flushing)
        deadline = int(self._seconds * _FLUSH_SHARE * 1000)
        actions: list[Action] = [Command(name, {"command": "quiesce", "deadline_ms": deadline}) for name in flushing]
        return [*actions, *self._ask()]

    def _ask(self) -> list[Action]:
        if not self.asking or self._asked or self._flushing:
            return []
        self._asked = True
        return [Send(frames.ending()), AwaitEnd(ANSWER_SECONDS)]

    def flushed(self, running: dict[str, Volume], name: str) -> list[Action]:
        """The volume's worker has flushed, or ended."""
        self._flushing.discard(name)
        return self._ask()

    def decided(self, running: dict[str, Volume], keep: bool) -> list[Action]:
        """END came."""
        if not self.asking:
            return []
        self.asking, self.keep = False, keep
        if not keep:
            return self._stop(running)
        return [action for volume in running.values() for action in self._leave(volume)]

    def undecided(self, running: dict[str, Volume]) -> list[Action]:
        """No answer came, or none can come."""
        if not self.asking:
            return []
        self.asking = False
        actions: list[Action] = []
        for volume in running.values():
            if volume.phase in (Phase.WAITING, Phase.FAILED):
                continue
            if volume.is_restricted or volume.init is None:
                actions += self._stopping(volume)
            elif volume.phase is Phase.READY:
                volume.phase = Phase.LEAVING
                self.keep = True  # whatever is unmounted was unmounted by itself
                actions.append(LetGo(volume.name, volume.mountpoint, self._rest))
            else:
                actions += self._leave(volume)
        return actions

    @property
    def _rest(self) -> float:
        return max(self._seconds * (1 - _FLUSH_SHARE) - ANSWER_SECONDS, _LEAST_SECONDS)

    def _leave(self, volume: Volume) -> list[Action]:
        if volume.phase in (Phase.WAITING, Phase.FAILED):
            return []
        if volume.init is None:
            return self._stopping(volume)
        obeys = volume.phase is Phase.READY
        volume.phase = Phase.LEAVING
        return [Leave(volume.name, self._rest if obeys else 0.0)]

    def _stopping(self, volume: Volume) -> list[Action]:
        volume.phase = Phase.STOPPING
        return [Stop(volume.name, self._seconds if not self._asked else self._rest)]

    def _stop(self, running: dict[str, Volume]) -> list[Action]:
        return [
            action
            for volume in running.values()
            if volume.phase not in (Phase.FAILED, Phase.WAITING)
            for action in self._stopping(volume)
        ]
