"""Frames of the control socket, versions 1 and 2: one JSON object per SOCK_SEQPACKET packet, at most 1 MiB.

    sidecar → node  HELLO READY ERROR BEAT FLUSHED DETACHED      version 2: DEPOSIT+fd STATE ENDING
    node → sidecar  WELCOME REFUSED ATTACH QUIESCE DETACH        version 2: ATTACH+fd UPDATE END

Version 2 hands descriptors over: a frame that carries one says `"fds": 1`.

Decoding checks shape and types of what the sidecar sends, so that the state machine (`pod.py`) works on known fields;
a bad frame raises `BadFrame` with the sentence that is logged before the connection closes. A frame of a type this
version does not know decodes to None and is ignored (a newer peer may send it). Pure.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from jfs_api import names

from jfs_csi.fuse.init import Handover, Init

VERSIONS = (1, 2)
LIMIT = 1 << 20  # bytes of a packet
# Longest sentence and code of a sidecar that are passed on into events and logs.
LONGEST_MESSAGE = 1000
LONGEST_CODE = 60


class BadFrame(ValueError):
    """The peer broke the protocol; the text says how, in one sentence. The connection is closed."""


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of a connection: versions the sidecar speaks, and the volumes it has mounted: (volume, generation)."""

    proto: tuple[int, ...]
    session: str
    version: str
    attached: tuple[tuple[str, int], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Ready:
    volume: str
    generation: int


@dataclass(frozen=True, slots=True)
class Failed:
    """ERROR: a mount failed, or (code `MountLost`) was lost after READY."""

    volume: str
    generation: int
    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class VolumeBeat:
    volume: str
    generation: int
    inflight: int
    dirty_bytes: int
    oldest_ms: int = 0  # age of the oldest request that waits


@dataclass(frozen=True, slots=True)
class Beat:
    volumes: tuple[VolumeBeat, ...]


@dataclass(frozen=True, slots=True)
class Flushed:
    volume: str
    generation: int
    dirty_bytes: int


@dataclass(frozen=True, slots=True)
class Detached:
    volume: str
    generation: int


@dataclass(frozen=True, slots=True)
class Deposit:
    """The packet brings a duplicate of the descriptor of the volume's FUSE connection, and what its INIT agreed."""

    volume: str
    generation: int
    init: Init


@dataclass(frozen=True, slots=True)
class Succession:
    """STATE: how often the volume's worker was replaced inside the sidecar, and what that cost."""

    volume: str
    generation: int
    sid: int
    restarts: int
    last_stall_ms: int
    replayed: int


@dataclass(frozen=True, slots=True)
class Ending:
    """The sidecar was told to end and has flushed everything; it asks whether to leave the mounts."""


Incoming = Hello | Ready | Failed | Beat | Flushed | Detached | Deposit | Succession | Ending


def encode(frame: dict[str, Any]) -> bytes:
    """One packet. Raises `BadFrame` if it would be larger than a packet may be (a huge Secret)."""
    packet = json.dumps(frame, separators=(",", ":")).encode()
    if len(packet) > LIMIT:
        raise BadFrame(f"A {frame.get('type')} frame of {len(packet)} bytes exceeds the limit of {LIMIT} bytes.")
    return packet


def decode(packet: bytes, proto: int = 1) -> Incoming | None:
    """The frame in a packet; None for a type unknown to the session's version. Raises `BadFrame`."""
    if len(packet) > LIMIT:
        raise BadFrame(f"The frame is larger than {LIMIT} bytes.")
    try:
        document = json.loads(packet)
    except ValueError:
        raise BadFrame("The frame is truncated or not JSON.") from None
    except RecursionError:
        raise BadFrame("The frame is nested too deeply.") from None
    if not isinstance(document, dict) or not isinstance(document.get("type"), str):
        raise BadFrame("The frame is not an object with a type.")
    fields = _Fields(document)
    match document["type"]:
        case "HELLO":
            return Hello(
                proto=tuple(version for version in fields.items("proto") if type(version) is int),
                session=fields.text("session"),
                version=fields.text("sidecarVersion"),
                attached=tuple(
                    (entry.text("volume"), entry.number("gen")) for entry in fields.objects("attached", optional=True)
                ),
            )
        case "READY":
            return Ready(fields.text("volume"), fields.number("gen"))
        case "ERROR":
            return Failed(
                fields.text("volume"),
                fields.number("gen"),
                fields.text("code")[:LONGEST_CODE],
                fields.text("message")[:LONGEST_MESSAGE],
                fields.flag("retryable"),
            )
        case "BEAT":
            return Beat(
                tuple(
                    VolumeBeat(
                        entry.text("volume"),
                        entry.number("gen"),
                        entry.number("inflight"),
                        entry.number("dirtyBytes"),
                        entry.number("oldestMs", default=0),
                    )
                    for entry in fields.objects("volumes")
                )
            )
        case "FLUSHED":
            return Flushed(fields.text("volume"), fields.number("gen"), fields.number("dirtyBytes"))
        case "DETACHED":
            return Detached(fields.text("volume"), fields.number("gen"))
        case "DEPOSIT" if proto >= 2:
            if fields.number("fds") != 1:
                raise BadFrame("Field fds of the DEPOSIT frame is not 1.")
            return Deposit(fields.text("volume"), fields.number("gen"), fields.init())
        case "STATE" if proto >= 2:
            return Succession(
                fields.text("volume"),
                fields.number("gen"),
                fields.number("sid"),
                fields.number("restarts"),
                fields.number("lastStallMs"),
                fields.number("replayed"),
            )
        case "ENDING" if proto >= 2:
            return Ending()
        case _:
            return None


class _Fields:
    """Typed access to an object's fields; a wrong one raises `BadFrame` with its name, never with its value."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def _wrong(self, name: str, kind: str) -> BadFrame:
        return BadFrame(f"Field {name} of the {self._document.get('type', 'frame')} frame is missing or not {kind}.")

    def text(self, name: str) -> str:
        value = self._document.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def number(self, name: str, *, default: int | None = None) -> int:
        value = self._document.get(name, default)
        if type(value) is not int or value < 0:
            raise self._wrong(name, "a whole number")
        return value

    def init(self) -> Init:
        try:
            return Init.from_json(self._document.get("init"))
        except ValueError as error:
            raise BadFrame(f"Field init of the {self._document['type']} frame is unusable: {error}.") from None

    def flag(self, name: str) -> bool:
        value = self._document.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def items(self, name: str) -> list[Any]:
        value = self._document.get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def objects(self, name: str, *, optional: bool = False) -> "list[_Fields]":
        if optional and name not in self._document:
            return []
        value = self.items(name)
        if not all(isinstance(entry, dict) for entry in value):
            raise self._wrong(name, "a list of objects")
        return [_Fields({"type": self._document.get("type"), **entry}) for entry in value]


def welcome(proto: int, node: str, pod_uid: str) -> dict[str, Any]:
    return {"type": "WELCOME", "proto": proto, "node": node, "podUID": pod_uid}


def refused(message: str) -> dict[str, Any]:
    return {"type": "REFUSED", "message": message}


def attach(
    volume: str,
    generation: int,
    mountpoint: str,
    read_only: bool,
    options: tuple[str, ...],
    secrets: dict[str, Any],
    mode: str = names.PRIVILEGED,
) -> dict[str, Any]:
    """ATTACH as every version knows it. `mountpoint` is relative to the control directory; the sidecar mounts there
    itself unless it is empty or a descriptor comes along."""
    return {
        "type": "ATTACH",
        "volume": volume,
        "gen": generation,
        "mode": mode,
        "mountpoint": mountpoint,
        "readOnly": read_only,
        "config": {"options": list(options)},
        "secrets": secrets,
    }


def handing_over(frame: dict[str, Any], handover: Handover | None) -> dict[str, Any]:
    """The ATTACH in version 2: with a descriptor, or saying that there is none."""
    return {
        **frame,
        "fds": 0 if handover is None else 1,
        "init": None if handover is None else handover.init.to_json(),
        "resume": handover is not None and handover.resume,
    }


def update(volume: str, generation: int, options: tuple[str, ...], secrets: dict[str, Any]) -> dict[str, Any]:
    """Other options or credentials for a mounted volume; what is open stays open."""
    return {
        "type": "UPDATE",
        "volume": volume,
        "gen": generation,
        "config": {"options": list(options)},
        "secrets": secrets,
    }


def end(keep: bool) -> dict[str, Any]:
    """The answer to ENDING: whether mounts and sessions are left for a successor."""
    return {"type": "END", "keep": keep}


def quiesce(volume: str, generation: int, deadline_ms: int) -> dict[str, Any]:
    return {"type": "QUIESCE", "volume": volume, "gen": generation, "deadlineMs": deadline_ms}


def detach(volume: str, generation: int) -> dict[str, Any]:
    return {"type": "DETACH", "volume": volume, "gen": generation}


def kind(packet: bytes) -> str:
    """The type of a frame that decodes to None, shortened for a log line."""
    return str(json.loads(packet)["type"])[:40]
