"""INTERRUPT: which requests end early when their process gets a signal.

The kernel sends one for any signal and then goes on waiting, unless the process dies of it. File systems on disks end no stat, open
or read for a signal that a program handles (a timer, a child that ended), and programs do not expect it; but a process that was
killed must not wait for a storage that does not answer. So locks, whose wait signal(7) lets end, and endless virtual files are
cancelled at once; other reading requests when their process is dying, looked at each second as the kernel says nothing more, or,
of a process that this namespace does not show, after a second of waiting, as the real client does. A change under way is never
torn: it ends, and is answered; but when it waits for long and its process is being killed, that is answered at once and need not
wait (`Watch`), also without an INTERRUPT: the last close of a process that dies sends none.
Concurrency: event loop only; nothing suspends.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

INTERRUPTIBLE: Final = frozenset(
    ("lookup", "getattr", "read", "virtual", "readdir", "readlink", "statfs", "getxattr", "setlkw")
)
_AT_ONCE: Final = frozenset(("virtual", "setlkw"))
_SECONDS: Final = 1.0
# Signals that do not end a process by default (signal(7)): SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH.
_HARMLESS: Final = sum(1 << (number - 1) for number in (17, 18, 19, 20, 21, 22, 23, 28))
_KILL: Final = 1 << 8
# Requests that a process waits for while its data are stored. What they wait for goes on without them.
_STORING: Final = frozenset(("write", "flush", "fsync"))
_STORING_SECONDS: Final = 3.0  # after which a signal of a process that is not shown ends them, as with the real client
# What nobody waits for, or may wait for long.
_LEFT_ALONE: Final = frozenset(("release", "releasedir", "setlkw", "virtual"))
_EXITING: Final = 4  # of the flags in /proc/<pid>/stat (linux/sched.h PF_EXITING)


class Waiting(Protocol):
    """A request's handler that waits for something."""

    pid: int
    ended: bool

    def cancel(self) -> bool:
        """Throw CancelledError in where it waits."""
        ...


def interrupt(loop: asyncio.AbstractEventLoop, run: Waiting, name: str) -> None:
    """The process behind *run*, a request *name*, has got a signal."""
    if name in _AT_ONCE:
        run.cancel()
    elif name in INTERRUPTIBLE:
        _look(loop, run, first=True)
    elif name in _STORING and run.pid <= 0:
        loop.call_later(_STORING_SECONDS, lambda: run.ended or run.cancel())


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


def was_killed(pid: int) -> bool:
    """Whether thread *pid* is being ended by a signal, or has one pending that ends it; False when there is no such thread."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return False
    # Fields 9 (flags) and 52 (exit_code, whose low bits are the signal) of proc(5); the list begins with field 3.
    if int(fields[6]) & _EXITING:
        return bool(int(fields[49]) & 0x7F)
    return is_dying(pid)


class Watch:
    """Looks each second at the requests that have been waiting for a second, as long as there are any. *running* has (handler,
    name, `time.perf_counter` of its start) by number; *give_up* gets the numbers of those whose process is being killed."""

    def __init__(self, running: "Mapping[int, tuple[Waiting, str, float]]", give_up: Callable[[int], None]) -> None:
        self._running = running
        self._give_up = give_up
        self._given_up: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """A request waits."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._look)

    def end(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        self._given_up &= self._running.keys()
        edge = time.perf_counter() - _SECONDS
        for number, (run, name, started) in list(self._running.items()):
            if started > edge or run.pid <= 0 or name in _LEFT_ALONE or number in self._given_up:
                continue
            if was_killed(run.pid):
                self._given_up.add(number)
                self._give_up(number)
                if name in ("flush", "fsync"):  # a failure is another handle's to be told of
                    run.cancel()
        if self._running:
            self.begin()
