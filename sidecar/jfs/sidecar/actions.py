"""What the state machine of the volumes wants done; `supervisor.py` does it, in order."""

from typing import Any, NamedTuple


class Send(NamedTuple):
    frame: dict[str, Any]


class Deposit(NamedTuple):
    """Send the frame with a copy of the descriptor that is held for the volume."""

    volume: str
    frame: dict[str, Any]


class State(NamedTuple):
    """Send the frame, but no volume's more than once a second: the last one counts."""

    volume: str
    frame: dict[str, Any]


class Start(NamedTuple):
    """Run a worker and give it the document (with credentials). With `connected` it is given a copy of the descriptor that is
    held for the volume, and mounts nothing."""

    volume: str
    generation: int
    mountpoint: str  # relative to the control directory; empty when the node service mounts
    document: dict[str, Any]
    connected: bool = False

    def __repr__(self) -> str:
        return f"Start({self.volume!r}, {self.generation})"


class StartLater(NamedTuple):
    """Ask for the volume's `due` after so many seconds."""

    volume: str
    seconds: float


class Stop(NamedTuple):
    """SIGTERM to the worker, SIGKILL after so many seconds."""

    volume: str
    seconds: float


class Leave(NamedTuple):
    """Have the worker end without unmounting, for a successor; SIGKILL after so many seconds, which loses nothing."""

    volume: str
    seconds: float


class LetGo(NamedTuple):
    """Nobody says whether a successor comes: unmount if no application uses the volume, else leave it."""

    volume: str
    mountpoint: str
    seconds: float


class Adopt(NamedTuple):
    """Hold the descriptor that came with the frame for the volume, in place of a former one."""

    volume: str


class Drop(NamedTuple):
    """Close the descriptor that is held for the volume, if there is one."""

    volume: str


class Command(NamedTuple):
    """A line for the worker."""

    volume: str
    command: dict[str, Any]


class ClearMount(NamedTuple):
    """Take away all that workers left mounted: the volume is not to be mounted any more."""

    mountpoint: str


class AwaitEnd(NamedTuple):
    """Ask for `undecided` unless the node service answers ENDING within so many seconds."""

    seconds: float


class Close(NamedTuple):
    """End the connection; `seconds` until the next attempt at the earliest."""

    reason: str
    seconds: float


class Log(NamedTuple):
    text: str


Action = (
    Send
    | Deposit
    | State
    | Start
    | StartLater
    | Stop
    | Leave
    | LetGo
    | Adopt
    | Drop
    | Command
    | ClearMount
    | AwaitEnd
    | Close
    | Log
)
