"""A mount as a process of its own for people: in the foreground, or in the background once it is mounted.

The background child is forked before any event loop exists, so that neither the metadata address nor a password gets into
another command line. It reports over a pipe: nothing but end-of-file when it died, one sentence when mounting failed, "ready"
when a request was answered; the parent then stats through the mount itself before it says success.
"""

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from jfs.errors import JfsError
from jfs.fuse.mounting import MountError
from jfs.mount import logs, mountpoint
from jfs.mount.serve import Mount, MountRequest

log = logging.getLogger("jfs.mount")
_READY = b"ready\n"
_PR_SET_THP_DISABLE = 41


async def run(mount: Mount, ready: Callable[[], Awaitable[None]]) -> None:
    """Mount and serve until unmounted or told to end by SIGTERM, SIGINT or SIGHUP; *ready* runs once when mounted. JfsError.
    A second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    starting = asyncio.create_task(mount.start())
    told = 0

    def end() -> None:
        nonlocal told
        told += 1
        if told > 1:
            log.warning("told to end again: what is not stored yet is lost")
            os._exit(1)
        if not starting.done():
            starting.cancel()
        else:
            mount.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    try:
        await starting
    except asyncio.CancelledError:
        raise MountError("ended by a signal before the file system was mounted") from None
    if mount.request.config.disable_transparent_hugepage:
        _small_pages()
    gc.freeze()  # what is loaded by now lives as long as the mount: full collections need not look at it

    where = mount.request.mountpoint or "the place of the connection that was given"

    async def announce() -> None:
        log.info("mounted at %s, session %d", where, mount.sid)
        await ready()

    await mount.serve(announce)
    log.info("unmounted %s", where)


def _small_pages() -> None:
    """Ask the kernel for no huge pages (PR_SET_THP_DISABLE, prctl(2)): collapsing them costs latency. Refused: logged."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0):
        log.warning("huge pages cannot be turned off: %s", os.strerror(ctypes.get_errno()))


def foreground(request: MountRequest, mounted: Callable[[], None] | None = None) -> int:
    """Serve until unmounted; the exit status, with one sentence on standard error when it is not 0. *mounted* runs once it is; what
    fails there (JfsError) is logged."""

    async def ready() -> None:
        try:
            if mounted is not None:
                mounted()
        except JfsError as error:
            log.error("%s", error)

    try:
        asyncio.run(run(Mount(request), ready))
    except JfsError as error:
        print(f"jfs: {error}", file=sys.stderr)
        return 1
    return 0


def background(request: MountRequest, log_file: str, level: int) -> int:
    """Start a child that serves; returns 0 once a stat through the mount answers, else 1 with the child's sentence."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reading)
            status = _child(request, log_file, level, writing)
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    if said == _READY:
        if asyncio.run(mountpoint.answers(request.mountpoint)):
            return 0
        said = f"{request.mountpoint} is mounted but does not answer; its log is {log_file}".encode()
    if not said:
        _, ended = os.waitpid(child, 0)
        said = f"the mount process ended with status {os.waitstatus_to_exitcode(ended)}; its log is {log_file}".encode()
    print(f"jfs: {said.decode('utf-8', 'replace').strip()}", file=sys.stderr)
    return 1


def _child(request: MountRequest, log_file: str, level: int, writing: int) -> int:
    def tell(text: bytes) -> None:
        nonlocal writing
        if writing >= 0:
            os.write(writing, text)
            os.close(writing)
            writing = -1

    try:
        os.setsid()
        os.chdir("/")
        logs.to_file(log_file, level)
        with open(os.devnull, "r+b") as null:
            for number in (0, 1, 2):
                os.dup2(null.fileno(), number)

        if request.config.supervised:
            from jfs.mount.supervised import Supervisor  # which imports this module

            return Supervisor(
                request, lambda: tell(_READY), lambda: os.close(writing) if writing >= 0 else None
            ).serve()

        async def ready() -> None:
            tell(_READY)

        asyncio.run(run(Mount(request), ready))
    except JfsError as error:
        log.error("%s", error)
        tell(str(error).encode())
        return 1
    except Exception as error:
        log.exception("the mount ended by a mistake of this program")
        tell(f"the mount ended by a mistake of this program: {error!r}".encode())
        return 1
    return 0
