"""`jfs-csi-holder`: a process that does nothing but keep duplicates of descriptors, and the node service's end of it.

It runs as a second container of the node service's pod, so that a crash of the node service – together with a sidecar's
even – loses no FUSE connection: the next node service fetches everything at its start. It only ever hears the node
service, over a socket that only root may open. One packet is one order, each is answered:

    KEEP {key, meta}+fd → OK      DROP {key} → OK      LIST {} → HELD {key, meta}+fd …, END

Standard library only, single-threaded, and as little as possible: it must outlive everything else and never change.
"""

import argparse
import contextlib
import json
import logging
import os
import select
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jfs_csi.fuse.device import is_connected, is_fuse_device
from jfs_csi.fuse.passing import Packet, receive, send

log = logging.getLogger("jfs_csi.holder")

Key = tuple[str, str]
# In the driver's directory. A folder of its own, so that the holder's container sees no mount: its copy would keep that alive.
SOCKET = ("holder", "s")
_LIMIT = 1 << 16  # bytes of a packet
_MOST_HELD = 4096
_ANSWER_WITHIN = 2.0  # seconds


class Holder:
    """What is held, and the orders on it."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, Any]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def order(self, connection: socket.socket, packet: Packet) -> None:
        """Carry out one order and answer. Raises ValueError for one that is none, OSError if the answer fails."""
        document = json.loads(packet.data)
        if not isinstance(document, dict):
            raise ValueError("the order is not an object")
        key = document.get("key")
        match document.get("type"):
            case "KEEP" if isinstance(key, str):
                descriptor = packet.take()
                if not is_fuse_device(descriptor) or (key not in self._held and len(self._held) >= _MOST_HELD):
                    os.close(descriptor)
                    raise ValueError("the descriptor is not of FUSE, or there are too many")
                self._drop(key)
                self._held[key] = (descriptor, document.get("meta"))
                send(connection, b'{"type":"OK"}')
            case "DROP" if isinstance(key, str):
                self._drop(key)
                send(connection, b'{"type":"OK"}')
            case "LIST":
                for each in [each for each, (descriptor, _) in self._held.items() if not is_connected(descriptor)]:
                    self._drop(each)
                for each, (descriptor, meta) in self._held.items():
                    send(connection, _encode({"type": "HELD", "key": each, "meta": meta}), [descriptor])
                send(connection, b'{"type":"END"}')
            case _:
                raise ValueError("the order is unknown")

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            os.close(held[0])

    def close(self) -> None:
        for key in list(self._held):
            self._drop(key)


def serve(path: Path, stopped: Callable[[], bool], wake: int) -> None:
    """Serve on the socket until `stopped` is true; the descriptor `wake` becomes readable when it may be. Raises OSError."""
    holder = Holder()
    with contextlib.ExitStack() as stack:
        stack.callback(holder.close)
        selector = stack.enter_context(selectors.DefaultSelector())
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC))
        _bind(listener, path)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        log.info("Holding descriptors for the node service at %s.", path)
        while not stopped():
            for chosen, _ in selector.select():
                if chosen.fileobj is listener:
                    connection, _ = listener.accept()
                    # A node service that is stopped in the middle of a list must not stop us.
                    connection.settimeout(_ANSWER_WITHIN)
                    selector.register(connection, selectors.EVENT_READ)
                elif isinstance(chosen.fileobj, socket.socket) and not _attend(holder, chosen.fileobj):
                    selector.unregister(chosen.fileobj)
                    chosen.fileobj.close()
        for chosen in list(selector.get_map().values()):
            if isinstance(chosen.fileobj, socket.socket):
                chosen.fileobj.close()


def _attend(holder: Holder, connection: socket.socket) -> bool:
    """Whether the connection goes on."""
    try:
        packet = receive(connection, _LIMIT)
    except OSError:
        return False
    try:
        if not packet.data:
            return False
        holder.order(connection, packet)
    except (ValueError, OSError) as error:
        log.warning("The node service's connection is closed: %s.", error)
        return False
    finally:
        packet.close()
    return True


def _bind(listener: socket.socket, path: Path) -> None:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=directory)  # of a predecessor
        before = os.umask(0o177)
        try:
            # By the descriptor: a socket's address has only 108 bytes.
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.umask(before)
    finally:
        os.close(directory)
    listener.listen(4)


class HolderClient:
    """The node service's end. Calls block for at most two seconds and raise OSError; then it is to be closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: socket.socket | None = None

    def is_open(self) -> bool:
        """Whether there is a connection that the holder has not ended."""
        if self._connection is None:
            return False
        poll = select.poll()
        # Nothing comes unasked: what can be read now is the end.
        poll.register(self._connection, select.POLLIN)
        if poll.poll(0):
            self.close()
        return self._connection is not None

    def keep(self, key: Key, descriptor: int, meta: dict[str, Any]) -> None:
        self._ask({"type": "KEEP", "key": "/".join(key), "meta": meta}, [descriptor])

    def drop(self, key: Key) -> None:
        self._ask({"type": "DROP", "key": "/".join(key)})

    def fetch(self) -> list[tuple[Key, int, dict[str, Any]]]:
        """Everything that is held: key, a duplicate (the caller's to close), and what was said with it."""
        found: list[tuple[Key, int, dict[str, Any]]] = []
        try:
            connection = self._connected()
            send(connection, b'{"type":"LIST"}')
            while (document := self._answer(found)) is not None:
                log.debug("The holder has %s.", document)
        except BaseException:
            for _, descriptor, _ in found:
                os.close(descriptor)
            self.close()
            raise
        return found

    def _answer(self, found: list[tuple[Key, int, dict[str, Any]]]) -> str | None:
        packet = receive(self._connected(), _LIMIT)
        try:
            document = json.loads(packet.data or b"null")
            if not isinstance(document, dict):
                raise ConnectionResetError("the holder ended")
            if document.get("type") != "HELD":
                return None
            pod_uid, _, volume = str(document["key"]).partition("/")
            meta = document.get("meta")
            found.append(((pod_uid, volume), packet.take(), meta if isinstance(meta, dict) else {}))
            return str(document["key"])
        except ValueError as error:
            raise OSError(f"the holder's answer is wrong: {error}") from error
        finally:
            packet.close()

    def _ask(self, order: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        connection = self._connected()
        send(connection, _encode(order), descriptors)
        packet = receive(connection, _LIMIT)
        packet.close()
        if packet.data != b'{"type":"OK"}':
            raise ConnectionResetError("the holder ended")

    def _connected(self) -> socket.socket:
        if self._connection is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            try:
                connection.settimeout(_ANSWER_WITHIN)
                directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    connection.connect(f"/proc/self/fd/{directory}/{self._path.name}")
                finally:
                    os.close(directory)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script."""
    parser = argparse.ArgumentParser(prog="jfs-csi-holder", description="Keeps FUSE connections for jfs-csi.")
    parser.add_argument("--socket", required=True, type=Path, help="path of the socket, in the driver's directory")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    stopping: list[int] = []
    wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(woken)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    try:
        options.socket.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        serve(options.socket, lambda: bool(stopping), wake)
    except OSError as error:
        print(f"jfs-csi-holder cannot serve: {error}.", file=sys.stderr)
        return 1
    finally:
        signal.set_wakeup_fd(-1)
        os.close(wake)
        os.close(woken)
    return 0


if __name__ == "__main__":
    sys.exit(main())
