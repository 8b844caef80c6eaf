"""Frames of the control socket, version 1, as the sidecar sees them: one JSON object per SOCK_SEQPACKET packet.

    sidecar → node  HELLO READY ERROR BEAT FLUSHED DETACHED
    node → sidecar  WELCOME REFUSED ATTACH QUIESCE DETACH

What the node service sends is checked for shape here, so that the state machine works on known fields. A bad frame
raises `BadFrame` with a sentence that never quotes the frame (it may carry credentials); the connection is then closed.
A type unknown to this version decodes to None and is ignored. Pure.
"""

import json
from typing import Any, NamedTuple

PROTO = 1
LIMIT = 1 << 20  # bytes of a packet


class BadFrame(ValueError):
    """The node service broke the protocol, or speaks another one; the text says how."""


class Welcome(NamedTuple):
    node: str
    pod_uid: str


class Refused(NamedTuple):
    message: str


class Attach(NamedTuple):
    """Mount a volume. `secrets` are the keys of the volume's Secret; they stay in this process and the worker."""

    volume: str
    generation: int
    mountpoint: str  # relative to the control directory: "volumes/<volume>"
    read_only: bool
    options: tuple[str, ...]
    secrets: dict[str, Any]

    def __repr__(self) -> str:
        return f"Attach({self.volume!r}, {self.generation})"


class Quiesce(NamedTuple):
    volume: str
    generation: int
    deadline_ms: int


class Detach(NamedTuple):
    volume: str
    generation: int


Incoming = Welcome | Refused | Attach | Quiesce | Detach


def encode(frame: dict[str, Any]) -> bytes:
    """One packet; ours are far below the limit."""
    return json.dumps(frame, separators=(",", ":")).encode()


def decode(packet: bytes) -> Incoming | None:
    """The frame in a packet; None for a type unknown to this version. Raises `BadFrame`."""
    if len(packet) > LIMIT:
        raise BadFrame(f"The frame is larger than {LIMIT} bytes.")
    try:
        frame = json.loads(packet)
    except (ValueError, RecursionError):
        raise BadFrame("The frame is truncated or not JSON.") from None
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise BadFrame("The frame is not an object with a type.")
    match frame["type"]:
        case "WELCOME":
            if frame.get("proto") != PROTO:
                raise BadFrame(f"The node service chose a version of the protocol that is not {PROTO}.")
            return Welcome(_text(frame, "node"), _text(frame, "podUID"))
        case "REFUSED":
            return Refused(_text(frame, "message"))
        case "ATTACH":
            return _attach(frame)
        case "QUIESCE":
            return Quiesce(_volume(frame), _number(frame, "gen"), _number(frame, "deadlineMs"))
        case "DETACH":
            return Detach(_volume(frame), _number(frame, "gen"))
        case _:
            return None


def kind(packet: bytes) -> str:
    """The type of a frame that decodes to None, shortened for a log line."""
    return str(json.loads(packet)["type"])[:40]


def _attach(frame: dict[str, Any]) -> Attach:
    volume = _volume(frame)
    if frame.get("mode") != "privileged":
        raise BadFrame("The ATTACH frame asks for a mode this sidecar does not know; only privileged is.")
    if frame.get("mountpoint") != f"volumes/{volume}":
        raise BadFrame("The ATTACH frame names a mount point outside the volume's directory.")
    config, secrets = frame.get("config"), frame.get("secrets")
    options = config.get("options") if isinstance(config, dict) else None
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise BadFrame("Field config of the ATTACH frame has no list of options.")
    if not isinstance(secrets, dict):
        raise BadFrame("Field secrets of the ATTACH frame is missing or not an object.")
    if not isinstance(frame.get("readOnly"), bool):
        raise BadFrame("Field readOnly of the ATTACH frame is missing or not true or false.")
    return Attach(volume, _number(frame, "gen"), f"volumes/{volume}", frame["readOnly"], tuple(options), secrets)


def _volume(frame: dict[str, Any]) -> str:
    volume = _text(frame, "volume")
    # It becomes one path component below our control directory.
    if not volume or "/" in volume or "\0" in volume or volume in (".", ".."):
        raise BadFrame(f"Field volume of the {frame['type']} frame is not a volume's name.")
    return volume


def _text(frame: dict[str, Any], name: str) -> str:
    value = frame.get(name)
    if not isinstance(value, str):
        raise BadFrame(f"Field {name} of the {frame['type']} frame is missing or not a string.")
    return value


def _number(frame: dict[str, Any], name: str) -> int:
    value = frame.get(name)
    if type(value) is not int or value < 0:
        raise BadFrame(f"Field {name} of the {frame['type']} frame is missing or not a whole number.")
    return value


def hello(session: str, version: str, attached: list[tuple[str, int]]) -> dict[str, Any]:
    return {
        "type": "HELLO",
        "proto": [PROTO],
        "session": session,
        "sidecarVersion": version,
        "attached": [{"volume": volume, "gen": generation} for volume, generation in attached],
    }


def ready(volume: str, generation: int) -> dict[str, Any]:
    return {"type": "READY", "volume": volume, "gen": generation}


def error(volume: str, generation: int, code: str, message: str, retryable: bool) -> dict[str, Any]:
    return {
        "type": "ERROR",
        "volume": volume,
        "gen": generation,
        "code": code,
        "message": message,
        "retryable": retryable,
    }


def beat(volumes: list[tuple[str, int, int, int]]) -> dict[str, Any]:
    """`volumes`: (volume, generation, requests in flight, dirty bytes)."""
    return {
        "type": "BEAT",
        "volumes": [
            {"volume": volume, "gen": generation, "inflight": inflight, "dirtyBytes": dirty}
            for volume, generation, inflight, dirty in volumes
        ],
    }


def flushed(volume: str, generation: int, dirty_bytes: int) -> dict[str, Any]:
    return {"type": "FLUSHED", "volume": volume, "gen": generation, "dirtyBytes": dirty_bytes}


def detached(volume: str, generation: int) -> dict[str, Any]:
    return {"type": "DETACHED", "volume": volume, "gen": generation}
