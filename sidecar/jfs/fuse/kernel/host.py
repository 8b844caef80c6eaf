"""The host that speaks the FUSE protocol itself: reads requests from /dev/fuse, runs the handlers, writes the replies.

One reader callback of the event loop takes a bounded burst of requests; a handler that does not have to wait is answered
before the next request is read (`eager`). The receive buffer is reused: names and values are copied out by the decoders,
and a write whose handler suspends keeps the buffer until it has ended, another one taking its place.
Invariant: every request gets exactly one reply, except FORGET, BATCH_FORGET and INTERRUPT, which get none, and those that a
successor on the same connection is left to answer (`leave`). A host that succeeds another (`connection`) sees no INIT, has
what its predecessor left unanswered queued again, and shows the kernel nothing that it could take for a new file system.
Notifications to the kernel may block on locks that a request under way holds, so they are written by a thread of their own.
"""

import asyncio
import contextlib
import errno
import logging
import os
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from jfs import eager
from jfs.errors import JfsError
from jfs.format.constants import SPECIAL
from jfs.fuse.accounting import Accounting, errno_of
from jfs.fuse.connection import Agreed, Connection, clone, resend
from jfs.fuse.handlers import Handlers
from jfs.fuse.kernel import interrupts, protocol, session, table
from jfs.fuse.kernel.notifier import DROPPED, GONE, Notifier
from jfs.fuse.kernel.repeats import Repeats
from jfs.fuse.kernel.table import Prepared
from jfs.fuse.mounting import Attached, MountError, MountSpec, set_read_ahead
from jfs.fuse.requests import Opened
from jfs.meta.volume import Caller
from jfs.survival.journal import Journal

log = logging.getLogger("jfs.fuse")

BURST: Final = 32  # requests taken before other tasks of the loop get their turn
_HEADROOM: Final = 4096  # the kernel wants room for headers and names beside max_write
_SPARE: Final = 4  # buffers kept
_OPENING: Final = ("open", "create", "tmpfile")
_PATIENT: Final = ("setlkw", "virtual")  # may wait for long without anything being wrong


class KernelHost:
    """One mount served over /dev/fuse."""

    def __init__(
        self,
        handlers: Handlers,
        accounting: Accounting,
        spec: MountSpec,
        *,
        max_io: int = 1 << 20,
        readahead_kib: int = 1024,
        connection: Connection | None = None,
        resend: bool = True,
        writeback: bool = False,
        journal: Journal | None = None,
    ) -> None:
        """With *connection* an existing one is served and nothing mounted. Without *resend* the host behaves as on kernels older
        than 6.9. With *writeback* a new connection lets the kernel keep what is written. With *journal* requests that must not be
        done twice carry what a predecessor left of them."""
        self._handlers = handlers
        self._lingering = handlers.meta.lingering
        self._lingering.on = True
        self._accounting = accounting
        self._spec = spec
        self._max_io = max_io if connection is None else max(max_io, connection.agreed.max_write)
        self._given = connection
        self._repeats = None if journal is None else Repeats(journal)
        self._resend = resend
        self._writeback = writeback
        handlers.files.writes_back = writeback if connection is None else connection.agreed.writes_back
        self.agreed: Agreed | None = None
        self._left = False
        self._caller = handlers.caller
        self._readahead_kib = readahead_kib
        self._valid = protocol.Valid.of(handlers.timeouts)
        self.invalidator = Notifier()
        self._table = table.build(handlers, accounting, self._valid, self.invalidator)
        self._attached: Attached | None = None
        self._fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starter: eager.Starter | None = None
        self._running: dict[int, tuple[eager.Run, str, float]] = {}
        self._watch = interrupts.Watch(self._running, self._give_up)
        self._late: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._spare: list[bytearray] = []
        self._take_buffer(bytearray(self._max_io + _HEADROOM))
        self._ended: asyncio.Future[None] | None = None
        self._agreed: asyncio.Future[None] | None = None

    @property
    def inflight(self) -> int:
        """Requests whose handlers are waiting for something."""
        return len(self._running)

    @property
    def repeated(self) -> int:
        """Requests that the kernel has queued again."""
        return 0 if self._repeats is None else self._repeats.count

    @property
    def oldest(self) -> float:
        """Seconds that the oldest of them has been waiting; waits for locks and for virtual files do not count."""
        started = next((started for _, name, started in self._running.values() if name not in _PATIENT), None)
        return time.perf_counter() - started if started is not None else 0.0

    @property
    def connection(self) -> Connection | None:
        """What a successor needs, once INIT is settled; the descriptor stays this host's."""
        if self.agreed is None or self._attached is None:
            return None
        return Connection(self._attached.fd, self.agreed, True)

    def _take_buffer(self, buffer: bytearray) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._vector = (buffer,)

    async def mount(self) -> None:
        """Attach the mountpoint, or take the connection over; requests wait in the kernel until `serve`."""
        given = self._given
        self._attached = (
            Attached(self._spec) if given is None else Attached.adopted(self._spec.mountpoint, os.dup(given.fd))
        )
        self._fd = self._attached.fd
        if given is not None:
            self.agreed = given.agreed
            self._serve_apart()
        self.invalidator.open(self._fd)

    def _serve_apart(self) -> None:
        """Where the kernel cannot queue requests again, they must at least fail when this process dies: read them from a
        descriptor that nobody else has. Only root can; others are given such a one by whoever mounted."""
        if self.agreed is not None and not self.agreed.resends and self._attached is not None and os.geteuid() == 0:
            with contextlib.suppress(OSError):
                self._fd = clone(self._attached.fd)

    async def serve(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Answer requests until the file system is unmounted or `close`."""
        loop = self._loop = asyncio.get_running_loop()
        self._starter = eager.Starter(loop)
        self._ended = loop.create_future()
        self._agreed = loop.create_future()
        loop.add_reader(self._fd, self._readable)

        async def announce(agreed: asyncio.Future[None]) -> None:
            await agreed
            if self._given is None:
                await asyncio.to_thread(set_read_ahead, self._spec.mountpoint, self._readahead_kib)
            await ready()

        announcement = asyncio.create_task(announce(self._agreed))
        if self._given is not None:
            self._take_over(self._given)
        try:
            await asyncio.wait((announcement, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if announcement.done():
                announcement.result()
            await self._ended
        finally:
            announcement.cancel()
            await asyncio.gather(announcement, return_exceptions=True)
            if self._fd >= 0:
                loop.remove_reader(self._fd)

    def _take_over(self, given: Connection) -> None:
        assert self._agreed is not None
        if given.resume and given.agreed.resends:
            if self._repeats is not None:
                self._repeats.expected = True
            try:
                resend(self._fd)
            except OSError as error:
                self._agreed.set_exception(MountError(f"the FUSE connection cannot be taken over: {error.strerror}"))
                self._end()
                return
        self._agreed.set_result(None)

    def leave(self) -> None:
        """End serving and leave the connection, still mounted, to a successor: `close` will not detach it. What waits for
        others is not answered where the kernel can queue it again."""
        self._left = True
        self._end()

    def unmount(self) -> None:
        """Detach the mountpoint; what is open keeps working until it is closed, then `serve` returns."""
        if self._attached is not None:
            self._attached.detach()

    async def close(self) -> None:
        """Wait for the handlers under way, then give up the descriptor: the kernel fails what still comes."""
        self._end()
        for run, name, _ in list(self._running.values()):
            if name in interrupts.INTERRUPTIBLE:
                run.cancel()
        while self._running:
            self._idle.clear()
            await self._idle.wait()
        self._watch.end()
        if self._late:
            await asyncio.wait(self._late)
        self.invalidator.close()
        if not self._left:
            self.unmount()
        if self._attached is not None and self._attached.fd != self._fd:
            os.close(self._attached.fd)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._attached = None

    def _end(self) -> None:
        if self._loop is not None and self._fd >= 0:
            self._loop.remove_reader(self._fd)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    # -- requests -----------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        fd, readv, caller, repeats = self._fd, os.readv, self._caller, self._repeats
        unpack = protocol.IN_HEADER.unpack_from
        for _ in range(BURST):
            try:
                end = readv(fd, self._vector)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in GONE:
                    self._end()
                    return
                if error.errno in DROPPED:  # the request was interrupted before we had it
                    continue
                log.error("reading /dev/fuse failed: %s", error)
                self._end()
                return
            if not end:
                self._end()
                return
            _, opcode, unique, node, uid, gid, pid, _, _ = unpack(self._buffer)
            prepared = self._table.get(opcode)
            if prepared is not None:
                who = caller(uid, gid, pid)
                if repeats is not None:
                    who = repeats.judged(prepared, unique, who)
                self._request(prepared, unique, node, who, end)
            else:
                self._special(opcode, unique, end)
                if self._ended is None or self._ended.done() or self._fd != fd:
                    return

    def _request(self, prepared: Prepared, unique: int, node: int, caller: Caller, end: int) -> None:
        started = time.perf_counter()
        try:
            args = prepared.decode(node, self._view, end)
        except (struct.error, ValueError) as error:
            self._failed(prepared, unique, caller, (node,), error, started)
            return
        assert self._starter is not None
        run = self._starter.start(prepared.handler(caller, *args), caller.pid)
        if run is None:
            if (failure := self._starter.error) is None:
                self._answer(prepared, unique, caller, args, self._starter.result, started)
            else:
                self._failed(prepared, unique, caller, args, failure, started)
            return
        buffer: bytearray | None = None

        def finish(run: eager.Run, result: Any, error: BaseException | None) -> None:
            if buffer is not None and len(self._spare) < _SPARE:
                self._spare.append(buffer)
            self._running.pop(unique, None)
            if not self._running:
                self._idle.set()
            if error is None:
                self._answer(prepared, unique, caller, args, result, started)
            else:
                self._failed(prepared, unique, caller, args, error, started)

        run.finish = finish
        name = prepared.operation.name
        shown = "virtual" if name == "read" and node >= SPECIAL else name
        self._running[unique] = (run, shown, started)
        self._watch.begin()
        if name == "write":  # its data lies in the buffer
            buffer = self._buffer
            self._take_buffer(self._spare.pop() if self._spare else bytearray(self._max_io + _HEADROOM))

    def _answer(
        self, prepared: Prepared, unique: int, caller: Caller, args: protocol.Arguments, result: Any, started: float
    ) -> None:
        try:
            body = prepared.encode(result, args, self._valid)
        except Exception as error:  # a mistake of ours must not leave a process waiting for ever
            self._failed(prepared, unique, caller, args, error, started)
            return
        if not self._reply(unique, body) and prepared.operation.name in _OPENING:
            self._close_unused(caller, args[0], result)
        if caller.request is not None:
            caller.request.end()
        self._accounting.finish(prepared.operation, caller, args, result, 0, started)

    def _give_up(self, unique: int) -> None:
        """Answer a request whose process is being killed; what it began goes on, and its own answer finds nobody."""
        self._reply_error(unique, errno.EINTR)

    def _close_unused(self, caller: Caller, node: int, result: Any) -> None:
        """Release what was opened for a process that has gone: the kernel does not know of it."""
        ino, _, opened = (node, None, result) if isinstance(result, Opened) else result
        task = asyncio.ensure_future(self._release_unused(caller, ino, opened.fh))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _release_unused(self, caller: Caller, ino: int, fh: int) -> None:
        try:
            await self._handlers.release(caller, ino, fh)
        except JfsError as error:
            log.warning("a file that nobody waited for was not closed cleanly: %s", error)

    def _failed(
        self,
        prepared: Prepared,
        unique: int,
        caller: Caller,
        args: protocol.Arguments,
        error: BaseException,
        started: float,
    ) -> None:
        cancelled = isinstance(error, asyncio.CancelledError)
        if cancelled and self._left and self.agreed is not None and self.agreed.resends:
            return  # it is the successor's
        number = errno.EINTR if cancelled else errno_of(error, prepared.operation.name, args)
        if number == errno.ENOENT and prepared.operation.name == "lookup" and self._valid.negative is not None:
            self._reply(unique, protocol.negative_out(self._valid.negative))
        else:
            self._reply_error(unique, number)
        if caller.request is not None:
            caller.request.end()
        self._accounting.finish(prepared.operation, caller, args, None, number, started)

    def _reply(self, unique: int, body: protocol.Reply) -> bool:
        """Whether the kernel has taken it: not when nobody waits for it any more."""
        try:
            os.writev(self._fd, (protocol.OUT_HEADER.pack(16 + len(body), 0, unique), body))
        except OSError as error:
            self._not_written(error)
            return False
        return True

    def _reply_error(self, unique: int, number: int) -> None:
        try:
            os.write(self._fd, protocol.OUT_HEADER.pack(16, -number, unique))
        except OSError as error:
            self._not_written(error)

    def _not_written(self, error: OSError) -> None:
        if error.errno in GONE:
            self._end()
        elif error.errno not in DROPPED:  # ENOENT: the request was interrupted meanwhile
            log.error("a reply was refused by the kernel: %s", error)

    def _special(self, opcode: int, unique: int, end: int) -> None:
        """The requests that are not for the handlers."""
        if opcode in (protocol.FORGET, protocol.BATCH_FORGET):
            if self._lingering:
                for ino in protocol.forgotten(self._view, opcode):
                    self._lingering.forgotten(ino)
            return
        if opcode == protocol.INTERRUPT:
            found = self._running.get(protocol.interrupted(self._view))
            if found is not None and self._loop is not None:
                interrupts.interrupt(self._loop, found[0], found[1])
        elif opcode == protocol.INIT:
            self._initialise(unique, end)
        elif opcode == protocol.DESTROY:
            self._reply(unique, b"")
            self._end()
        else:
            self._reply_error(unique, errno.ENOSYS)

    def _initialise(self, unique: int, end: int) -> None:
        assert self._agreed is not None
        try:
            body = self._view[protocol.HEADER : end]
            reply, agreed = session.answer(
                unique,
                body,
                self._max_io,
                locks=self._handlers.locks,
                acls=self._handlers.acls,
                resend=self._resend,
                writeback=self._writeback,
            )
        except MountError as error:
            self._reply_error(unique, errno.EPROTO)
            self._agreed.set_exception(error)
            self._end()
            return
        os.write(self._fd, reply)
        log.debug("FUSE 7.%d, flags %#x, requests of %d bytes", agreed.minor, agreed.flags, agreed.max_write)
        self.agreed = agreed
        self._handlers.files.writes_back = agreed.writes_back
        if self._loop is not None and not agreed.resends:
            self._loop.remove_reader(self._fd)
            self._serve_apart()
            self._loop.add_reader(self._fd, self._readable)
        if not self._agreed.done():
            self._agreed.set_result(None)
