"""Running a handler's coroutine at once, without a task while it does not have to wait.

`start` runs the coroutine to its first suspension in the caller's frame. One that finishes there costs neither a task nor a
turn of the event loop; one that waits goes on in a task from where it is. While it runs without a task, asyncio's "current
task" is a stand-in that forwards to the task made later: time-outs and task groups opened before the first suspension
cancel the right one.
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, cast


class _StandIn:
    """The current task before there is one (what asyncio.timeout and asyncio.TaskGroup ask of it)."""

    __slots__ = ("_early", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        self._early = 0

    def cancel(self, msg: Any = None) -> bool:
        if self.task is not None:
            return self.task.cancel(msg)
        self._early += 1
        return True

    def cancelling(self) -> int:
        return self.task.cancelling() if self.task is not None else self._early

    def uncancel(self) -> int:
        if self.task is not None:
            return self.task.uncancel()
        self._early = max(0, self._early - 1)
        return self._early

    def done(self) -> bool:
        return self.task is not None and self.task.done()

    def cancelled_early(self) -> bool:
        return self._early > 0


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """The rest of *coroutine*, which has suspended on *waits_for*."""
    while True:
        try:
            yield waits_for
        except BaseException as error:
            try:
                waits_for = coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
        else:
            return (yield from coroutine.__await__())


Finished = Callable[[asyncio.Task[Any]], None]


class Waiting:
    """A handler that suspended; `task` is its task."""

    __slots__ = ("task",)

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task


def start(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """The coroutine's result, its exception raised, or `Waiting` when it goes on in a task."""
    stand_in = _StandIn()
    asyncio.tasks._enter_task(loop, stand_in)  # type: ignore[arg-type]
    try:
        waits_for = coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        asyncio.tasks._leave_task(loop, stand_in)  # type: ignore[arg-type]
    task = loop.create_task(cast("Coroutine[Any, Any, Any]", _go_on(coroutine, waits_for)))
    stand_in.task = task
    if stand_in.cancelled_early():
        task.cancel()
    return Waiting(task)
