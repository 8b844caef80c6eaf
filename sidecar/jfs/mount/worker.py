"""`jfs worker`: one mount under a supervisor that speaks JSON lines (the sidecar's). Hidden from people.

Input: the first line is the document of the mount, further ones are commands; secrets come only this way. Output: one JSON
object per line – ready, error, beat, flushed. End of input does not end the mount: a supervisor that died leaves it to
SIGTERM. Standard error carries the log.
"""

import asyncio
import json
import logging
import os
import sys
from typing import Any, Final, TextIO

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
from jfs.fuse.mounting import MountError
from jfs.mount import config, logs, mountpoint
from jfs.mount.process import run
from jfs.mount.serve import Mount, MountRequest, StorageKeys

log = logging.getLogger("jfs.worker")
BEAT_SECONDS: Final = 10.0


def parse(line: str) -> tuple[MountRequest, dict[str, str]]:
    """The mount that the document in *line* asks for, and environment variables for the storage. ConfigError."""
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
    password = str(document.get("password") or envs.pop("META_PASSWORD", ""))
    passphrase = str(document.get("passphrase") or envs.pop("JFS_RSA_PASSPHRASE", ""))
    request = MountRequest(
        str(meta_url), str(where), chosen, password, keys, str(document.get("name") or ""), passphrase=passphrase
    )
    return request, envs


def replaces(line: str) -> bool:
    """Whether the document says that a dead mount of a former worker lies on the mountpoint. This mount then goes on top
    of it, so that it appears, by propagation, in every container that holds the dead one."""
    return json.loads(line).get("replace") is True


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

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def say(self, **event: Any) -> None:
        """Write an event; a supervisor that is gone is not an error."""
        try:
            self._output.write(json.dumps(event) + "\n")
            self._output.flush()
        except (BrokenPipeError, ValueError):
            log.warning("nobody reads the worker's events any more")

    async def run(self, input_fd: int) -> int:
        """The exit status: 0 after an unmount or SIGTERM, 1 after an error event."""
        reader = await _lines(input_fd)
        beating: asyncio.Task[None] | None = None
        commands: asyncio.Task[None] | None = None
        try:
            line = (await reader.readline()).decode("utf-8", "replace")
            request, envs = parse(line)
            os.environ.update(envs)
            if not replaces(line):
                mountpoint.check(request.mountpoint)
            mount = Mount(request)

            async def ready() -> None:
                nonlocal beating, commands
                self.say(event="ready", sid=mount.sid, pid=os.getpid())
                beating = asyncio.create_task(self._beat(mount))
                commands = asyncio.create_task(self._obey(mount, reader))

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
        return 0

    async def _beat(self, mount: Mount) -> None:
        while True:
            self.say(event="beat", inflight=mount.inflight, dirty_bytes=mount.dirty_bytes)
            await asyncio.sleep(BEAT_SECONDS)

    async def _obey(self, mount: Mount, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            try:
                command = json.loads(line)
                name = command["command"]
            except (ValueError, KeyError, TypeError):
                log.warning("a line from the supervisor is no command and was ignored")
                continue
            if name == "quiesce":
                await self._quiesce(mount, command.get("deadline_ms") or 5000)
            else:
                log.warning("unknown command %r was ignored", name)

    async def _quiesce(self, mount: Mount, deadline_ms: int) -> None:
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await mount.flush()
        except (TimeoutError, FsError) as error:
            log.warning("not everything was stored before the deadline: %s", error)
        self.say(event="flushed", dirty_bytes=mount.dirty_bytes)


async def _lines(fd: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    return reader


def main() -> int:
    """Entry of the hidden command."""
    logs.to_stderr()
    return asyncio.run(Worker(sys.stdout).run(sys.stdin.fileno()))
