"""`jfs worker`: one mount under a supervisor that speaks JSON lines (the sidecar's). Hidden from people.

Input: the first line is the document of the mount, further ones are commands (quiesce, leave); secrets come only this way.
Output: one JSON object per line – ready, error, beat, flushed. Standard error carries the log.
Under a supervisor both go over one socket (`channel`), on which descriptors travel too: the document may bring that of a FUSE
connection which this worker is to serve in place of a mount of its own (`init`, `resume`, `check`), and `ready` brings the supervisor a
copy of the connection's descriptor, so that a successor can be given it. A worker dies with its supervisor, which is what
holds the connection. Started by hand, on pipes, the end of input does not end the mount.
"""

import asyncio
import ctypes
import json
import logging
import os
import signal
import stat
from typing import Any, Final

from jfs.errors import (
    ConfigError,
    CredentialsRefused,
    FsError,
    JfsError,
    ObjectError,
    ObjectForbidden,
    StoreError,
    VolumeError,
)
from jfs.fuse.connection import Agreed, Connection
from jfs.fuse.mounting import MountError
from jfs.mount import config, logs, mountpoint
from jfs.mount.channel import Channel
from jfs.mount.process import run
from jfs.mount.serve import Mount, MountRequest, StorageKeys
from jfs.mount.storage_check import Check

log = logging.getLogger("jfs.worker")
BEAT_SECONDS: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1
_FIRST_BEAT_SECONDS: Final = 1.0  # after a takeover: what had to be repeated is told soon
RESEND_ENVIRONMENT: Final = "JFS_FUSE_RESEND"


def parse(line: str, descriptor: int | None = None) -> tuple[MountRequest, dict[str, str]]:
    """The mount that the document in *line* asks for, and environment variables for the storage; *descriptor* came with it.
    ConfigError, MountError."""
    try:
        document = json.loads(line)
        meta_url, where = document["meta_url"], document["mountpoint"]
        storage = document.get("storage") or {}
        keys = StorageKeys(**{name: str(storage.get(name) or "") for name in _KEYS})
        envs = {str(name): str(value) for name, value in (document.get("envs") or {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("the worker's document is not the JSON object it must be") from error
    chosen = config.from_list(map(str, document.get("options") or ()))
    if document.get("read_only"):
        chosen = config.with_changes(chosen, read_only=True, mount_flags=tuple({*chosen.mount_flags, "ro"}))
    chosen = config.with_changes(chosen, metrics=document.get("metrics") or "")
    if os.environ.get(RESEND_ENVIRONMENT) == "off":
        chosen = config.with_changes(chosen, fuse_resend=False)
    connection: Connection | None = None
    if document.get("init") is not None:
        if descriptor is None:
            raise ConfigError("the worker's document names a FUSE connection and brings no descriptor")
        connection = Connection(descriptor, Agreed.of(document["init"]), document.get("resume") is True)
    if not chosen.cache_dir:  # the container's own layer is no place for a cache
        chosen = config.with_changes(chosen, cache_size=0)
    password = str(document.get("password") or envs.pop("META_PASSWORD", ""))
    passphrase = str(document.get("passphrase") or envs.pop("JFS_RSA_PASSPHRASE", ""))
    request = MountRequest(
        str(meta_url),
        str(where),
        chosen,
        password,
        keys,
        str(document.get("name") or ""),
        passphrase=passphrase,
        connection=connection,
        check=_CHECKS.get(document.get("check"), "full"),
        state=str(document["state"]) if document.get("state") else None,
        drain=True,
    )
    return request, envs


def replaces(line: str) -> bool:
    """Whether the document says that a dead mount of a former worker lies on the mountpoint. This mount then goes on top
    of it, so that it appears, by propagation, in every container that holds the dead one."""
    return json.loads(line).get("replace") is True


_CHECKS: Final[dict[object, Check]] = {"reachable": "reachable", "none": "none"}
_KEYS: Final = ("storage", "bucket", "access_key", "secret_key", "session_token")


def describe(error: JfsError) -> dict[str, Any]:
    """The error event: a code for programs, a sentence for people, and whether trying again may help."""
    codes: tuple[tuple[type[JfsError], str, bool], ...] = (
        (CredentialsRefused, "WrongCredentials", False),
        (StoreError, "MetadataUnreachable", True),
        (VolumeError, "NotFormatted", False),
        (ObjectForbidden, "WrongCredentials", False),
        (ObjectError, "StorageUnreachable", True),
        (MountError, "MountFailed", True),
        (ConfigError, "BadOption", False),
    )
    code, retryable = next(
        ((code, again) for kind, code, again in codes if isinstance(error, kind)), ("MountFailed", False)
    )
    return {"event": "error", "code": code, "message": str(error), "retryable": retryable}


class Worker:
    """The conversation with the supervisor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def say(self, **event: Any) -> None:
        """Send an event; a supervisor that is gone is not an error."""
        self._channel.say(event)

    async def run(self) -> int:
        """The exit status: 0 after an unmount, SIGTERM or `leave`, 1 after an error event."""
        channel = self._channel
        beating: asyncio.Task[None] | None = None
        commands: asyncio.Task[None] | None = None
        try:
            line = (await channel.readline()).decode("utf-8", "replace")
            request, envs = parse(line, channel.descriptor())
            os.environ.update(envs)
            if request.connection is None and not replaces(line):
                mountpoint.check(request.mountpoint)
            mount = Mount(request)

            async def ready() -> None:
                nonlocal beating, commands
                self._ready(mount)
                beating = asyncio.create_task(self._beat(mount))
                commands = asyncio.create_task(self._obey(mount))

            await run(mount, ready)
        except JfsError as error:
            log.error("%s", error)
            self.say(**describe(error))
            return 1
        finally:
            tasks = [task for task in (beating, commands) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            channel.close()
        return 0

    def _ready(self, mount: Mount) -> None:
        event = {"event": "ready", "sid": mount.sid, "pid": os.getpid()}
        connection = mount.connection
        if connection is None or not self._channel.is_supervised:
            self._channel.say(event)
        else:
            self._channel.say({**event, "init": connection.agreed.record()}, connection.fd)

    async def _beat(self, mount: Mount) -> None:
        if mount.request.connection is not None:
            await asyncio.sleep(_FIRST_BEAT_SECONDS)
        while True:
            self.say(
                event="beat",
                inflight=mount.inflight,
                dirty_bytes=mount.dirty_bytes,
                oldest_ms=int(mount.oldest * 1000),
                repeated=mount.repeated,
            )
            await asyncio.sleep(BEAT_SECONDS)

    async def _obey(self, mount: Mount) -> None:
        while line := await self._channel.readline():
            try:
                command = json.loads(line)
                name = command["command"]
            except (ValueError, KeyError, TypeError):
                log.warning("a line from the supervisor is no command and was ignored")
                continue
            if name == "quiesce":
                await self._quiesce(mount, command.get("deadline_ms") or 5000)
            elif name == "leave":
                mount.leave()
            else:
                log.warning("unknown command %r was ignored", name)

    async def _quiesce(self, mount: Mount, deadline_ms: int) -> None:
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await mount.flush()
        except (TimeoutError, FsError) as error:
            log.warning("not everything was stored before the deadline: %s", error)
        self.say(event="flushed", dirty_bytes=mount.dirty_bytes)


def die_with(supervisor: int) -> None:
    """Have the kernel kill this process when its parent *supervisor* ends (PR_SET_PDEATHSIG, prctl(2)): nobody else would hold
    the connection, and a new supervisor must not meet a second server."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:  # it ended before
        os._exit(1)


def serve(channel_fd: int) -> int:
    """Be the worker at the other end of the supervisor's socket *channel_fd*; the exit status."""
    return asyncio.run(Worker(Channel(channel_fd, channel_fd)).run())


def main() -> int:
    """Entry of the hidden command."""
    logs.to_stderr()
    if stat.S_ISSOCK(os.fstat(0).st_mode):
        die_with(os.getppid())
    return asyncio.run(Worker(Channel(0, 1)).run())
