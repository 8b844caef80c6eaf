"""`jfs zygote`: a process that has imported the client and waits; workers are forked from it, warm.

A Python process that imports the client takes some hundred milliseconds until it can mount; a fork of this one takes
milliseconds, and shares most of its memory with the zygote and its sisters. Input: packets on the socket that is standard
input, each with one end of a worker's channel; answer: the worker's pid. The worker is forked twice, so that it becomes the
supervisor's child (a subreaper), which alone waits for it: the zygote may die without harm, and is started anew.
Invariant: the zygote has one thread, no event loop and no secrets.
"""

import contextlib
import gc
import importlib
import json
import os
import socket
from typing import Final

from jfs.mount import logs, traces, worker

# What a mount imports late, on Redis and S3 or a directory: the common cases. A module that is not there is not needed.
_WARM: Final = (
    "jfs.mount.serve",
    "jfs.fuse.kernel.host",
    "jfs.meta.engines.redis.store",
    "jfs.meta.engines.redis.examine",
    "jfs.object.file",
    "jfs.object.s3",
    "jfs.chunk.compression",
    "encodings.ascii",
    "encodings.idna",
)


def main() -> int:
    """Until the supervisor is gone."""
    supervisor = os.getppid()
    worker.die_with(supervisor)
    logs.to_stderr()
    for name in _WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collections in the children leave these pages shared
    control = socket.socket(fileno=0)
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not packet:
            return 0
        pid = _fork(control, descriptors[0], supervisor)
        os.close(descriptors[0])
        control.send(json.dumps({"pid": pid}).encode())


def _fork(control: socket.socket, channel: int, supervisor: int) -> int:
    """A worker on *channel*; its pid."""
    telling = os.pipe()
    gate = os.pipe()
    child = os.fork()
    if child == 0:
        _middle(control, channel, supervisor, telling, gate)
    os.close(telling[1])
    os.close(gate[0])
    with os.fdopen(telling[0], "rb") as pipe:
        said = pipe.read()  # ends with the process in the middle
    os.waitpid(child, 0)
    os.close(gate[1])  # now that it is gone the worker is the supervisor's child, and may go on
    return int(said)


def _middle(
    control: socket.socket, channel: int, supervisor: int, telling: tuple[int, int], gate: tuple[int, int]
) -> None:
    """The process between: forks the worker, tells its pid, and ends, which makes the worker the supervisor's."""
    status = 1
    try:
        pid = os.fork()
        if pid == 0:
            for descriptor in (*telling, gate[1]):
                os.close(descriptor)
            control.close()
            with open(os.devnull, "rb") as null:
                os.dup2(null.fileno(), 0)
            os.read(gate[0], 1)
            os.close(gate[0])
            worker.die_with(supervisor)
            traces.call_last_argument(b"worker")  # "zygote" until now
            status = worker.serve(channel)
        else:
            os.write(telling[1], b"%d" % pid)
            status = 0
    finally:
        os._exit(status)
