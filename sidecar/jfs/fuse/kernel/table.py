"""Which handler answers which opcode, with the codecs around it; made once for a mount.

Place: between `protocol` and `extensions`, which know the wire, and `host`, which looks a request's opcode up here. What the volume
or the mount does not offer is left out, and answered ENOSYS: the kernel then does not ask again. Pure but for the handlers.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from jfs.fuse.accounting import Accounting, Operation
from jfs.fuse.handlers import Handlers
from jfs.fuse.kernel import extensions, protocol
from jfs.fuse.kernel.listing import Listings
from jfs.fuse.kernel.notifier import Notifier
from jfs.meta.volume import Caller

_XATTRS = (21, 22, 23, 24)


class Prepared(NamedTuple):
    """What becomes of the requests of an opcode."""

    operation: Operation
    handler: Callable[..., Any]
    decode: protocol.Decoder
    encode: protocol.Encoder
    once: bool  # must not be done again when the kernel repeats it


def build(handlers: Handlers, accounting: Accounting, valid: protocol.Valid, notifier: Notifier) -> dict[int, Prepared]:
    """The table of a mount."""
    table = {
        opcode: Prepared(accounting.operation(name), getattr(handlers, name), decode, encode, opcode in protocol.ONCE)
        for opcode, (name, decode, encode) in {**protocol.OPERATIONS, **extensions.OPERATIONS}.items()
    }
    listings = Listings(handlers, valid)
    for opcode, listing in ((28, listings.readdir), (44, listings.readdir), (29, listings.releasedir)):
        table[opcode] = table[opcode]._replace(handler=listing)
    for opcode in extensions.LOCKING:
        table[opcode] = table[opcode]._replace(handler=_noted(table[opcode].handler, notifier))
    for opcode in protocol.UMASK_AT:
        table[opcode] = _with_umask(opcode, table[opcode])
    if not handlers.xattrs:  # the kernel then never asks again, nor looks for capabilities at each write
        for opcode in _XATTRS:
            del table[opcode]
    if not handlers.ioctls:
        del table[extensions.IOCTL]
    return table


def _with_umask(opcode: int, prepared: Prepared) -> Prepared:
    """The entry whose handler is told the caller's umask: with ACLs the kernel leaves it to us, as a default ACL takes its place;
    without it has been applied, and is only logged."""
    decode, handler = prepared.decode, prepared.handler

    def decode_with_umask(node: int, view: protocol.Buffer, end: int) -> protocol.Arguments:
        return *decode(node, view, end), protocol.umask(opcode, view)

    def handle(caller: Caller, *args: Any) -> Any:
        return handler(caller._replace(umask=args[-1]), *args[:-1])

    return prepared._replace(decode=decode_with_umask, handler=handle)


def _noted(handler: Callable[..., Awaitable[None]], notifier: Notifier) -> Callable[..., Awaitable[None]]:
    """The handler, answered when the kernel knows what turned out to be changed: whoever gets a lock reads no old page."""

    async def handle(*args: Any) -> None:
        await handler(*args)
        with contextlib.suppress(asyncio.CancelledError):  # the lock is had
            await notifier.written()

    return handle
