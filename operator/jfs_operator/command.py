"""The `jfs` command as the operator uses it: one subprocess per question, one JSON document on its standard input.

Secrets travel only on that pipe: the argument list is fixed words, and the environment is the operator's own (which holds no
secret). Answers are checked before anything believes them. A command that overruns its deadline is killed with its children.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

Document = Mapping[str, object]

DEADLINE: Final = 120.0  # seconds; `format` tests the bucket, a slow one takes some
REMOVAL_DEADLINE: Final = 3600.0  # seconds; removing a large volume's objects takes long
_LONGEST_ANSWER: Final = 1 << 20


class JfsError(Exception):
    """The command failed; the text is its one sentence, not yet scrubbed."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The identity of a formatted volume."""

    name: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Check:
    """Whether one side answered; None when it was not asked."""

    ok: bool | None
    message: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `jfs status` found; `file_system` is None when the database holds no volume or did not answer."""

    metadata: Check
    storage: Check
    file_system: FileSystem | None


class Jfs(Protocol):
    """What the operator asks of the client. Every method raises JfsError."""

    async def format(self, document: Document) -> FileSystem:
        """Format the volume, or find that this very volume exists already."""
        ...

    async def inspect(self, document: Document, *, storage: bool) -> Inspection:
        """Whether the credentials work (with `storage`, for the object storage too) and which volume they lead to."""
        ...

    async def destroy(self, document: Document, uuid: str) -> None:
        """Remove the volume with all its data, provided that its UUID is this."""
        ...

    async def remove(self, document: Document, path: str) -> None:
        """Remove a directory of the volume with its data."""
        ...


class JfsCommand:
    """`Jfs` by a program on this machine; deadlines in seconds."""

    def __init__(self, program: str = "jfs", *, deadline: float = DEADLINE, removal: float = REMOVAL_DEADLINE) -> None:
        self._program = program
        self._deadline = deadline
        self._removal = removal

    async def format(self, document: Document) -> FileSystem:
        answer = await self._run("format", document)
        found = _file_system(answer)
        if found is None:
            raise JfsError("jfs format answered without the volume's name and uuid")
        return found

    async def inspect(self, document: Document, *, storage: bool) -> Inspection:
        answer = await self._run("status", {**document, "check": ["metadata", "storage"] if storage else ["metadata"]})
        return Inspection(_check(answer, "metadata"), _check(answer, "storage"), _file_system(answer.get("setting")))

    async def destroy(self, document: Document, uuid: str) -> None:
        await self._run("destroy", {**document, "uuid": uuid}, removes=True)

    async def remove(self, document: Document, path: str) -> None:
        await self._run("rmr", {**document, "path": path}, removes=True)

    async def _run(self, command: str, document: Document, *, removes: bool = False) -> dict[str, Any]:
        deadline = self._removal if removes else self._deadline
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                command,
                "--stdin",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # so that its children end with it
            )
        except OSError as error:
            raise JfsError(f"cannot run {self._program}: {error.strerror}") from error
        try:
            async with asyncio.timeout(deadline):
                output, complaint = await process.communicate(json.dumps(document).encode())
        except TimeoutError:
            raise JfsError(f"jfs {command} did not end within {deadline:.0f} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.communicate()  # its end, and that of what it says
        if process.returncode != 0:
            raise JfsError(_sentence(complaint) or f"jfs {command} ended with exit code {process.returncode}")
        if removes:
            return {}
        try:
            answer = json.loads(output[:_LONGEST_ANSWER])
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise JfsError(f"jfs {command} answered with something that is not a JSON object")
        return answer


def _sentence(complaint: bytes) -> str:
    """The last line of standard error: warnings may come before the sentence."""
    lines = complaint.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _check(answer: Mapping[str, Any], side: str) -> Check:
    found = answer.get(side)
    if not isinstance(found, dict) or not isinstance(found.get("ok"), bool):
        return Check(None, "not asked")
    return Check(found["ok"], str(found.get("message") or ""))


def _file_system(found: object) -> FileSystem | None:
    if not isinstance(found, dict):
        return None
    lower = {str(key).lower(): value for key, value in found.items()}  # the setting record spells Name and UUID
    name, uuid = lower.get("name"), lower.get("uuid")
    if not isinstance(name, str) or not isinstance(uuid, str) or not uuid:
        return None
    return FileSystem(name, uuid)
