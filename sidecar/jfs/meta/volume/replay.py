"""Requests that the kernel repeats because whoever worked on them died: done once, whatever had become of them.

The predecessor wrote its intention before its transaction could commit (`jfs.survival.journal`). With one the database tells
whether the effect is there: the inode that was to be made exists; the name that was to go does not stand for the inode any
more; the moved inode has left its old name. Then the request is answered as if it had just been done; else it is done. Errors
leave no intention, and are found again.
A transaction of the dead that is still on its way to the database may win against the repetition, which then fails as one that
comes too late does: the effect is looked for once more before such an error is believed.
What other clients do to the same names meanwhile counts as done afterwards.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from jfs.errors import FsError
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import NodeKey, XattrKey
from jfs.meta.operations.create import Made
from jfs.meta.operations.renaming import EXCHANGE
from jfs.meta.store.base import Store
from jfs.survival.journal import Intention, Request

T = TypeVar("T")


async def once(
    request: Request | None, effect: Callable[[Intention], Awaitable[T | None]], do: Callable[[], Awaitable[T]]
) -> T:
    """The result of *do*, or what *effect* finds if a predecessor has done it: None when it has not."""
    if request is None or request.intention is None:
        return await do()
    found = await effect(request.intention)
    if found is not None:
        return found
    try:
        return await do()
    except FsError:
        found = await effect(request.intention)
        if found is None:
            raise
        return found


async def made(store: Store, intention: Intention, parent: int) -> Made | None:
    """The inode that was to be made below *parent*."""
    attr, directory = await store.get(NodeKey(intention.ino), NodeKey(parent))
    if attr is None or directory is None:
        return None
    return Made(intention.ino, attr, directory, True)


async def linked(store: Store, intention: Intention, parent: int, name: bytes) -> Attr | None:
    """The inode that was to get another name."""
    found = await store.lookup(parent, name)
    return found[1] if found is not None and found[0].ino == intention.ino else None


async def removed(store: Store, intention: Intention, parent: int, name: bytes) -> int | None:
    """The inode that was to lose the name."""
    found = await store.lookup(parent, name)
    return intention.ino if found is None or found[0].ino != intention.ino else None


async def moved(store: Store, intention: Intention, parent: int, name: bytes, flags: int) -> bool | None:
    """True when the inode has left its old name, or has changed places."""
    found = await store.lookup(parent, name)
    present = found[0].ino if found is not None else 0
    done = present == intention.other if flags & EXCHANGE else present != intention.ino
    return True if done else None


async def xattr(store: Store, intention: Intention, name: bytes, *, wanted: bool) -> bool | None:
    """True when the attribute is there, or is not, as *wanted*."""
    (value,) = await store.get(XattrKey(intention.ino, name))
    return True if (value is not None) == wanted else None
