"""INTERRUPT: which requests end early when their process gets a signal.

The kernel sends one for any signal and then goes on waiting, unless the process dies of it. File systems on disks end no stat, open
or read for a signal that a program handles (a timer, a child that ended), and programs do not expect it; but a process that was
killed must not wait for a storage that does not answer. So locks, whose wait signal(7) lets end, and endless virtual files are
cancelled at once; other reading requests when their process is dying, looked at each second as the kernel says nothing more, or,
of a process that this namespace does not show, after a second of waiting, as the real client does. A change under way is never
torn: it ends, and is answered.
Concurrency: event loop only; nothing suspends.
"""

import asyncio
from typing import Final, Protocol

INTERRUPTIBLE: Final = frozenset(
    ("lookup", "getattr", "read", "virtual", "readdir", "readlink", "statfs", "getxattr", "setlkw")
)
_AT_ONCE: Final = frozenset(("virtual", "setlkw"))
_SECONDS: Final = 1.0
# Signals that do not end a process by default (signal(7)): SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH.
_HARMLESS: Final = sum(1 << (number - 1) for number in (17, 18, 19, 20, 21, 22, 23, 28))
_KILL: Final = 1 << 8


class Waiting(Protocol):
    """A request's handler that waits for something."""

    pid: int
    ended: bool

    def cancel(self) -> bool:
        """Throw CancelledError in where it waits."""


def interrupt(loop: asyncio.AbstractEventLoop, run: Waiting, name: str) -> None:
    """The process behind *run*, a request *name*, has got a signal."""
    if name in _AT_ONCE:
        run.cancel()
    elif name in INTERRUPTIBLE:
        _look(loop, run, first=True)


def _look(loop: asyncio.AbstractEventLoop, run: Waiting, *, first: bool) -> None:
    if run.ended:
        return
    if is_dying(run.pid) if run.pid > 0 else not first:
        run.cancel()
        return

    def again() -> None:
        _look(loop, run, first=False)

    loop.call_later(_SECONDS, again)


def is_dying(pid: int) -> bool:
    """Whether thread *pid* has a signal pending that ends it; True when there is no such thread any more."""
    sets = dict.fromkeys((b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt"), 0)
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                name, _, value = line.partition(b":")
                if name in sets:
                    sets[name] = int(value, 16)
    except OSError:
        return True
    pending = sets[b"SigPnd"] | sets[b"ShdPnd"]
    survived = sets[b"SigBlk"] | sets[b"SigIgn"] | sets[b"SigCgt"] | _HARMLESS
    return bool(pending & _KILL or pending & ~survived)
