"""Running a coroutine at once and without a task: our own small driver of coroutines, of the hosts for handlers and, by `begin`, of
whoever would start a task for what nearly always ends without waiting.

`Run` steps the coroutine in the caller's frame until it suspends. One that finishes there costs no turn of the event loop; one
that waits is stepped again by the future it waits for, two turns fewer than a task needs. While it is stepped, it is what
asyncio calls the current task, so that time-outs and task groups (asyncio.timeout, asyncio.TaskGroup) cancel it as they
would cancel a task: it has their part of a task's interface, and `cancel` is the host's way to interrupt it.
Concurrency: everything in the event loop; started from a callback or from within a task, which is the current one again afterwards.
"""

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

# Called with (run, result, error) when the coroutine has ended, also within `start`.
Finish = Callable[["Run", Any, BaseException | None], None]

T = TypeVar("T")
_CONTEXT: Context | None = None


class Run:
    """One coroutine on its way; `done` once it has ended."""

    __slots__ = ("_cancels", "_coroutine", "_loop", "_must_cancel", "_waits_for", "ended", "finish", "pid")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, finish: Finish, pid: int = 0
    ) -> None:
        self.pid = pid  # of the process that waits for it, 0 when it is not known
        self._coroutine = coroutine
        self._loop = loop
        self.finish = finish
        self._waits_for: asyncio.Future[Any] | None = None
        self._must_cancel = False
        self._cancels = 0
        self.ended = False

    def start(self) -> bool:
        """Step for the first time; whether it has ended (and `finish` been called)."""
        outer = asyncio.current_task(self._loop)
        if outer is None:
            self._step()
            return self.ended
        _leave_task(self._loop, outer)
        try:
            self._step()
        finally:
            _enter_task(self._loop, outer)
        return self.ended

    def _wake(self, future: asyncio.Future[Any]) -> None:
        self._waits_for = None
        self._step()

    def _step(self) -> None:
        loop, coroutine = self._loop, self._coroutine
        result: Any = None
        error: BaseException | None = None
        _enter_task(loop, self)  # type: ignore[arg-type]
        waits_for: Any = None
        try:
            if self._must_cancel:
                self._must_cancel = False
                waits_for = coroutine.throw(asyncio.CancelledError())
            else:
                waits_for = coroutine.send(None)
        except StopIteration as stop:
            self.ended, result = True, stop.value
        except (KeyboardInterrupt, SystemExit):
            self.ended = True
            raise
        except BaseException as raised:
            self.ended, error = True, raised
        finally:
            _leave_task(loop, self)  # type: ignore[arg-type]
        if self.ended:
            self.finish(self, result, error)
        else:
            self._wait(waits_for)

    def _wait(self, waits_for: Any) -> None:
        if waits_for is None:  # asyncio.sleep(0)
            self._loop.call_soon(self._step, context=_context())
        else:
            waits_for._asyncio_future_blocking = False
            self._waits_for = waits_for
            waits_for.add_done_callback(self._wake, context=_context())
            if self._must_cancel and waits_for.cancel():
                self._must_cancel = False

    # -- what is asked of a current task ------------------------------------------------------------------------

    def cancel(self, msg: Any = None) -> bool:
        """Throw CancelledError in where it waits; False when it has ended."""
        if self.ended:
            return False
        self._cancels += 1
        if self._waits_for is None or not self._waits_for.cancel(msg):
            self._must_cancel = True
        return True

    def cancelling(self) -> int:
        return self._cancels

    def uncancel(self) -> int:
        if self._cancels:
            self._cancels -= 1
        return self._cancels

    def done(self) -> bool:
        return self.ended


class Starter:
    """Starts coroutines from callbacks of the loop, most of which end at once: those cost no `Run` of their own."""

    __slots__ = ("_idle", "_loop", "_spare", "error", "result")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._idle = _nothing()
        self._idle.close()
        self._spare = Run(self._idle, loop, _ignored)
        self.result: Any = None  # of the last coroutine that ended at once, with `error`
        self.error: BaseException | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any], pid: int = 0) -> Run | None:
        """Step for the first time; None when it has ended, else what is on its way and wants a `finish` set before the loop's
        next turn."""
        run, loop = self._spare, self._loop
        run._coroutine = coroutine
        _enter_task(loop, run)  # type: ignore[arg-type]
        try:
            waits_for = coroutine.send(None)
        except StopIteration as stop:
            self.error, self.result = None, stop.value
            return None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as raised:
            self.error = raised
            return None
        finally:
            _leave_task(loop, run)  # type: ignore[arg-type]
        self._spare = Run(self._idle, loop, _ignored)
        run.pid = pid
        run._wait(waits_for)
        return run


async def _nothing() -> None:
    """What a spare `Run` holds."""


def _ignored(run: Run, result: Any, error: BaseException | None) -> None:
    """No `finish` yet."""


def _context() -> Context:
    """One context for all: handlers use no context variables, and copying one at each wait costs."""
    global _CONTEXT
    if _CONTEXT is None:
        _CONTEXT = copy_context()
    return _CONTEXT


def begin(coroutine: Coroutine[Any, Any, T]) -> "asyncio.Future[T]":
    """Run *coroutine* up to where it first waits, and on as a task would be; a future of its result, which is done when it never
    waited. Cancelling the future does not end the coroutine."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(run: Run, result: T, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)

    Run(coroutine, loop, finish).start()
    return future
