"""A sidecar for tests: version 2 of the control protocol and a FUSE file system of a few files, in one process.

`python small_sidecar.py CONTROL [hold=PATH]`: connects to `CONTROL/s`, serves every volume it is told to – on the
descriptor that comes along, or on a mount of its own, whose descriptor it deposits – and logs one line per step on
standard error. Files: `who` (the process's number), `held` (a read is not answered while PATH exists), `large`.
SIGTERM: ENDING, and END decides.
"""

import array
import ctypes
import errno
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import uuid
from pathlib import Path
from typing import Any

IN, OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
NAMES = {b"who": 2, b"held": 3, b"large": 4}
SIZE = 1 << 16
RESENT = 1 << 63
FLAGS = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 22  # ASYNC_READ ATOMIC_O_TRUNC BIG_WRITES MAX_PAGES
libc = ctypes.CDLL(None, use_errno=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
    size = 0 if node == 1 else SIZE
    return ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class Volume:
    """One served connection."""

    def __init__(self, name: str, generation: int, fd: int, init: dict[str, int], held: Path | None) -> None:
        self.name, self.generation, self.fd, self.init, self.held = name, generation, fd, init, held
        self.waiting: list[tuple[int, int]] = []  # (unique, size) of reads that are held
        os.set_blocking(fd, False)

    def requests(self) -> bool:
        """Answer what is there; False at the end of the connection."""
        while True:
            try:
                request = os.read(self.fd, (1 << 20) + 4096)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                return False
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = IN.unpack_from(request)
        if unique & RESENT:
            say(f"resent {opcode}")
        body = request[IN.size :]
        match opcode:
            case 1:  # LOOKUP
                found = NAMES.get(body.rstrip(b"\0"))
                if found is None:
                    self.reply(unique, b"", errno.ENOENT)
                else:
                    self.reply(unique, struct.pack("<QQQQII", found, 0, 0, 0, 0, 0) + attributes(found))
            case 3 | 4:  # GETATTR SETATTR
                self.reply(unique, struct.pack("<QII", 0, 0, 0) + attributes(node))
            case 14 | 27:  # OPEN OPENDIR; direct I/O: each read comes here
                self.reply(unique, struct.pack("<QII", node, 1 if opcode == 14 else 0, 0))
            case 15:  # READ
                _, offset, size = struct.unpack_from("<QQI", body)
                if node == 3 and self.held is not None and self.held.exists():
                    say("holding a read")
                    self.waiting.append((unique, size))
                else:
                    self.reply(unique, content(node)[offset : offset + size])
            case 16:  # WRITE
                self.reply(unique, struct.pack("<II", struct.unpack_from("<QQI", body)[2], 0))
            case 17:  # STATFS
                self.reply(unique, struct.pack("<QQQQQIIII24x", 1000, 600, 600, 100, 90, 4096, 255, 4096, 0))
            case 18 | 20 | 25 | 29 | 38:  # RELEASE FSYNC FLUSH RELEASEDIR DESTROY
                self.reply(unique, b"")
            case 28:  # READDIR
                self.reply(unique, b"")
            case 2 | 36 | 42:  # FORGET INTERRUPT BATCH_FORGET
                pass
            case _:
                self.reply(unique, b"", errno.ENOSYS)

    def unhold(self) -> None:
        if self.held is not None and not self.held.exists():
            for unique, size in self.waiting:
                self.reply(unique, content(3)[:size])
            self.waiting.clear()

    def reply(self, unique: int, body: bytes, error: int = 0) -> None:
        try:
            os.write(self.fd, OUT.pack(16 + len(body), -error, unique) + body)
        except OSError as failure:
            say(f"reply refused: {failure}")


def content(node: int) -> bytes:
    return {2: str(os.getpid()).encode(), 3: b"held", 4: bytes(range(256)) * (SIZE // 256)}[node]


class Sidecar:
    def __init__(self, control: Path, held: Path | None) -> None:
        self.control, self.held, self.session = control, held, uuid.uuid4().hex
        self.volumes: dict[str, Volume] = {}
        self.socket: socket.socket | None = None
        self.ending = False

    def connect(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(self.control, os.O_PATH)
        try:
            self.socket.connect(f"/proc/self/fd/{directory}/s")
        except OSError:
            self.socket.close()
            self.socket = None
            return
        finally:
            os.close(directory)
        attached = [{"volume": volume.name, "gen": volume.generation} for volume in self.volumes.values()]
        self.send(type="HELLO", proto=[1, 2], session=self.session, sidecarVersion="0", attached=attached)

    def send(self, descriptor: int | None = None, **frame: Any) -> None:
        assert self.socket is not None
        ancillary = (
            [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        )
        self.socket.sendmsg([json.dumps(frame).encode()], ancillary)

    def receive(self) -> None:
        assert self.socket is not None
        packet, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 21, 1)
        if not packet:
            self.socket.close()
            self.socket = None
            return
        frame = json.loads(packet)
        say(f"got {frame['type']} {frame.get('message', '')}")
        match frame["type"]:
            case "WELCOME":
                for volume in self.volumes.values():
                    self.deposit(volume)
            case "ATTACH":
                self.attach(frame, descriptors)
            case "UPDATE":
                say(f"update {json.dumps(frame['config'])}")
                if "bad" in frame["config"]["options"]:
                    self.send(
                        type="ERROR",
                        volume=frame["volume"],
                        gen=frame["gen"],
                        code="BadOption",
                        message="No.",
                        retryable=False,
                    )
                else:
                    self.send(type="READY", volume=frame["volume"], gen=frame["gen"])
            case "QUIESCE":
                self.send(type="FLUSHED", volume=frame["volume"], gen=frame["gen"], dirtyBytes=0)
            case "DETACH":
                departing = self.volumes.pop(frame["volume"], None)
                if departing is not None:
                    self.unmount(departing)
                    os.close(departing.fd)
                self.send(type="DETACHED", volume=frame["volume"], gen=frame["gen"])
            case "END":
                if not frame["keep"]:
                    for volume in self.volumes.values():
                        self.unmount(volume)
                sys.exit(0)

    def attach(self, frame: dict[str, Any], descriptors: list[int]) -> None:
        name = frame["volume"]
        resume = frame.get("resume", False)
        if descriptors:
            fd, init = descriptors[0], frame["init"]
            os.set_inheritable(fd, False)
            say(f"attached {name} with a descriptor, resume={resume}")
        else:
            assert frame["mode"] == "privileged"
            fd, init = self.mount(self.control / frame["mountpoint"])
            say(f"attached {name} by a mount of its own")
        volume = self.volumes[name] = Volume(name, frame["gen"], fd, init, self.held)
        if resume and init["flags"] & 1 << 39:
            os.write(fd, OUT.pack(16, 7, 0))  # FUSE_NOTIFY_RESEND
        self.send(type="READY", volume=name, gen=frame["gen"])
        self.deposit(volume)
        self.send(type="STATE", volume=name, gen=frame["gen"], sid=1, restarts=0, lastStallMs=0, replayed=0)

    def deposit(self, volume: Volume) -> None:
        self.send(volume.fd, type="DEPOSIT", volume=volume.name, gen=volume.generation, fds=1, init=volume.init)

    def mount(self, path: Path) -> tuple[int, dict[str, int]]:
        fd = os.open("/dev/fuse", os.O_RDWR)
        data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        if libc.mount(b"JuiceFS:small", str(path).encode(), b"fuse.juicefs", 6, data.encode()) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        request = os.read(fd, 1 << 20)
        unique = IN.unpack_from(request)[2]
        flags = FLAGS | 1 << 30 | 1 << 39
        body = INIT_OUT.pack(7, 38, 1 << 20, flags & 0xFFFFFFFF, 64, 48, 1 << 20, 1, 256, 0, flags >> 32)
        os.write(fd, OUT.pack(16 + len(body), 0, unique) + body)
        init = {"minor": 38, "flags": flags, "max_write": 1 << 20, "max_readahead": 1 << 20, "max_background": 64}
        return fd, {"major": 7, **init, "congestion_threshold": 48, "time_gran": 1, "max_pages": 256}

    def unmount(self, volume: Volume) -> None:
        libc.umount2(str(self.control / "volumes" / volume.name).encode(), 2 | 8)

    def run(self) -> None:
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGTERM, lambda *_: None)
        while True:
            if self.socket is None:
                self.connect()
            poll = select.poll()
            poll.register(wake, select.POLLIN)
            if self.socket is not None:
                poll.register(self.socket, select.POLLIN)
            owners = {volume.fd: volume for volume in self.volumes.values()}
            for fd in owners:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(50):
                if fd == wake:
                    os.read(wake, 100)
                    self.send(type="ENDING")
                elif fd in owners:
                    if owners[fd].name in self.volumes and not owners[fd].requests():
                        say(f"connection of {owners[fd].name} ended")
                        self.volumes.pop(owners[fd].name)
                elif self.socket is not None:
                    try:
                        self.receive()
                    except ConnectionResetError:
                        self.socket.close()
                        self.socket = None
            for volume in self.volumes.values():
                volume.unhold()


if __name__ == "__main__":
    hold = next((Path(word[5:]) for word in sys.argv[2:] if word.startswith("hold=")), None)
    Sidecar(Path(sys.argv[1]), hold).run()
