"""A TCP proxy that makes a network fail on command: latency, stalls, refused, reset, closed and half-closed connections, cuts at
any packet or byte. It stands between a client and a real server (Redis, S3) and knows neither's protocol.

It runs an event loop of its own in a thread, so that tests may block in system calls on a mount meanwhile. Every method may be
called from any thread and has taken effect when it returns. A planned fault happens once, `hit` tells when.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Direction = Literal["request", "answer"]
# What a planned fault does: "reset" (RST to both), "close" (FIN to both), "half-close" (FIN in the direction of the data),
# "stall" (nothing passes any more, connections stay).
How = Literal["reset", "close", "half-close", "stall"]


class _Pair:
    """A client's connection and the one made for it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.stalled = asyncio.Event()
        self.stalled.set()

    def cut(self, how: str) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                if how == "reset":
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    end.shutdown(socket.SHUT_RDWR)
            end.close()


class FaultProxy:
    """Passes everything from `port` of the loopback to *host*:*port* until it is told otherwise. A context manager."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self.port = 0
        self.latency = 0.0  # seconds before each piece of data is passed on
        self.hit = threading.Event()
        self.connections = 0  # accepted so far
        self._pairs: dict[_Pair, list[asyncio.Task[None]]] = {}
        self._plan: tuple[Direction, str, int, How] | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._listener: socket.socket | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)

    # -- what tests do ------------------------------------------------------------------------------------------

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def retarget(self, port: int) -> None:
        """Connections made from now on lead to another port."""
        self._target = (self._target[0], port)

    def refuse(self) -> None:
        """Connections from now on are refused; those that are there stay."""
        self._do(self._refuse())

    def accept(self) -> None:
        """Take connections (again), always at the same port."""
        self._do(self._accept())

    def cut(self, how: How = "reset") -> int:
        """Break all connections now; how many there were."""
        return self._do(self._cut_all(how))

    def down(self) -> None:
        """As a server that has died: connections are reset, and new ones refused."""
        self.refuse()
        self.cut()

    def stall(self) -> None:
        """Connections stay and are taken, nothing passes."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def resume(self) -> None:
        """The end of `stall`, also of a planned one."""

        async def go() -> None:
            self._open.set()
            for pair in self._pairs:
                pair.stalled.set()

        self._do(go())

    def plan(self, direction: Direction, unit: Literal["packets", "bytes"], count: int, how: How) -> None:
        """Let *count* packets (pieces as they arrive) or bytes of that direction pass from now on, all connections together, and
        when the next one comes break its connection."""

        async def go() -> None:
            self.hit.clear()
            self._plan = (direction, unit, count, how)

        self._do(go())

    def no_plan(self) -> None:
        """Forget a planned fault that has not happened."""

        async def go() -> None:
            self._plan = None

        self._do(go())

    # -- in the loop --------------------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _accept(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._loop.add_reader(listener, self._take, listener)

    async def _refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.remove_reader(listener)
            listener.close()
        connecting = list(self._connecting)
        for task in connecting:
            task.cancel()
        if connecting:
            await asyncio.wait(connecting)

    async def _shut(self) -> None:
        await self._refuse()
        tasks = [task for tasks in self._pairs.values() for task in tasks]
        await self._cut_all("reset")
        if tasks:
            await asyncio.wait(tasks)

    async def _cut_all(self, how: How) -> int:
        pairs = dict(self._pairs)
        for pair, tasks in pairs.items():
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            pair.cut(how)
        return len(pairs)

    def _take(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:  # it was taken back
            return
        client.setblocking(False)
        self.connections += 1
        task = self._loop.create_task(self._connect(client))
        self._connecting.add(task)

        def connected(task: "asyncio.Task[None]") -> None:
            self._connecting.discard(task)
            if task.cancelled():  # perhaps before it began
                client.close()

        task.add_done_callback(connected)

    async def _connect(self, client: socket.socket) -> None:
        server = socket.socket()
        server.setblocking(False)
        pair = _Pair(client, server)
        try:
            await asyncio.get_running_loop().sock_connect(server, self._target)
        except OSError:  # the server is down: so is what stands for it
            pair.cut("reset")
            return
        except asyncio.CancelledError:
            pair.cut("reset")
            raise
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tasks = [
            asyncio.create_task(self._pass(pair, client, server, "request")),
            asyncio.create_task(self._pass(pair, server, client, "answer")),
        ]
        self._pairs[pair] = tasks
        ended = self._ender(pair)
        for task in tasks:
            task.add_done_callback(ended)

    def _ender(self, pair: _Pair) -> Callable[[Any], None]:
        def ended(task: "asyncio.Task[None]") -> None:
            tasks = self._pairs.get(pair)
            if tasks is not None and all(task.done() for task in tasks):
                del self._pairs[pair]
                pair.cut("close")

        return ended

    async def _pass(self, pair: _Pair, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source, 1 << 16):
                if self.latency:
                    await asyncio.sleep(self.latency)
                await self._open.wait()
                await pair.stalled.wait()
                passed, how = self._judge(direction, data)
                if passed:
                    await loop.sock_sendall(sink, data[:passed])
                if how == "":
                    continue
                self.hit.set()
                if how == "stall":
                    pair.stalled.clear()
                    await pair.stalled.wait()
                    await loop.sock_sendall(sink, data[passed:])
                elif how == "half-close":
                    sink.shutdown(socket.SHUT_WR)
                    return
                else:
                    others = [task for task in self._pairs.get(pair, []) if task is not asyncio.current_task()]
                    for task in others:
                        task.cancel()
                    await asyncio.gather(*others, return_exceptions=True)  # nobody waits on a socket that is closed
                    pair.cut(how)
                    return
            sink.shutdown(socket.SHUT_WR)

    def _judge(self, direction: Direction, data: bytes) -> tuple[int, str]:
        """How many bytes of *data* pass, and what happens then."""
        plan = self._plan
        if plan is None or plan[0] != direction:
            return len(data), ""
        _, unit, count, how = plan
        if unit == "packets":
            if count:
                self._plan = (direction, unit, count - 1, how)
                return len(data), ""
            self._plan = None
            return 0, how
        if len(data) <= count:
            self._plan = (direction, unit, count - len(data), how)
            return len(data), ""
        self._plan = None
        return count, how
