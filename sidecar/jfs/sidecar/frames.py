"""Frames of the control socket, versions 1 and 2, as the sidecar sees them: one JSON object per SOCK_SEQPACKET packet.

    sidecar → node  HELLO READY ERROR BEAT FLUSHED DETACHED      version 2: DEPOSIT+fd STATE ENDING
    node → sidecar  WELCOME REFUSED ATTACH QUIESCE DETACH        version 2: ATTACH+fd UPDATE END

Version 2 hands over FUSE connections: a frame that carries a descriptor says `"fds": 1`.
What the node service sends is checked for shape here, so that the state machine works on known fields. A bad frame
raises `BadFrame` with a sentence that never quotes the frame (it may carry credentials); the connection is then closed.
A type unknown to this version decodes to None and is ignored. Pure.
"""

import json
from typing import Any, NamedTuple

VERSIONS = (1, 2)
PRIVILEGED, RESTRICTED = "privileged", "restricted"
LIMIT = 1 << 20  # bytes of a packet


class BadFrame(ValueError):
    """The node service broke the protocol, or speaks another one; the text says how."""


class Welcome(NamedTuple):
    node: str
    pod_uid: str
    proto: int = 1


class Refused(NamedTuple):
    message: str


class Attach(NamedTuple):
    """Serve a volume. `secrets` are the keys of the volume's Secret; they stay in this process and the worker. With `init` the
    frame brings the descriptor of a FUSE connection whose INIT settled just that; `resume`: it was served before."""

    volume: str
    generation: int
    mountpoint: str  # relative to the control directory: "volumes/<volume>"
    read_only: bool
    options: tuple[str, ...]
    secrets: dict[str, Any]
    mode: str = PRIVILEGED
    init: dict[str, int] | None = None
    resume: bool = False

    def __repr__(self) -> str:
        return f"Attach({self.volume!r}, {self.generation})"


class Update(NamedTuple):
    """Other options or credentials for a volume that is served."""

    volume: str
    generation: int
    options: tuple[str, ...]
    secrets: dict[str, Any]

    def __repr__(self) -> str:
        return f"Update({self.volume!r}, {self.generation})"


class End(NamedTuple):
    """The answer to ENDING: whether mounts and sessions are left to a successor."""

    keep: bool


class Quiesce(NamedTuple):
    volume: str
    generation: int
    deadline_ms: int


class Detach(NamedTuple):
    volume: str
    generation: int


Incoming = Welcome | Refused | Attach | Quiesce | Detach | Update | End


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
            if frame.get("proto") not in VERSIONS:
                raise BadFrame(f"The node service chose a version of the protocol that is none of {VERSIONS}.")
            return Welcome(_text(frame, "node"), _text(frame, "podUID"), frame["proto"])
        case "REFUSED":
            return Refused(_text(frame, "message"))
        case "ATTACH":
            return _attach(frame)
        case "QUIESCE":
            return Quiesce(_volume(frame), _number(frame, "gen"), _number(frame, "deadlineMs"))
        case "DETACH":
            return Detach(_volume(frame), _number(frame, "gen"))
        case "UPDATE":
            return Update(_volume(frame), _number(frame, "gen"), _options(frame), _secrets(frame))
        case "END":
            if not isinstance(frame.get("keep"), bool):
                raise BadFrame("Field keep of the END frame is missing or not true or false.")
            return End(frame["keep"])
        case _:
            return None


def kind(packet: bytes) -> str:
    """The type of a frame that decodes to None, shortened for a log line."""
    return str(json.loads(packet)["type"])[:40]


def _attach(frame: dict[str, Any]) -> Attach:
    volume = _volume(frame)
    mode = frame.get("mode")
    if mode not in (PRIVILEGED, RESTRICTED):
        raise BadFrame("The ATTACH frame asks for a mode this sidecar does not know; privileged and restricted are.")
    mountpoint = "" if mode == RESTRICTED else f"volumes/{volume}"
    if frame.get("mountpoint") != mountpoint:
        raise BadFrame("The ATTACH frame names a mount point outside the volume's directory.")
    if not isinstance(frame.get("readOnly"), bool):
        raise BadFrame("Field readOnly of the ATTACH frame is missing or not true or false.")
    init = frame.get("init")
    if (frame.get("fds", 0) == 1) != (init is not None) or (mode == RESTRICTED and init is None):
        raise BadFrame("The ATTACH frame has a descriptor without INIT's parameters, or these without a descriptor.")
    if init is not None and not (isinstance(init, dict) and all(type(value) is int for value in init.values())):
        raise BadFrame("Field init of the ATTACH frame is not an object of numbers.")
    return Attach(
        volume,
        _number(frame, "gen"),
        mountpoint,
        frame["readOnly"],
        _options(frame),
        _secrets(frame),
        mode,
        init,
        frame.get("resume") is True,
    )


def _options(frame: dict[str, Any]) -> tuple[str, ...]:
    config = frame.get("config")
    options = config.get("options") if isinstance(config, dict) else None
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise BadFrame(f"Field config of the {frame['type']} frame has no list of options.")
    return tuple(options)


def _secrets(frame: dict[str, Any]) -> dict[str, Any]:
    secrets = frame.get("secrets")
    if not isinstance(secrets, dict):
        raise BadFrame(f"Field secrets of the {frame['type']} frame is missing or not an object.")
    return secrets


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
        "proto": list(VERSIONS),
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


def beat(volumes: list[tuple[str, int, int, int, int]]) -> dict[str, Any]:
    """`volumes`: (volume, generation, requests in flight, dirty bytes, milliseconds that the oldest request waits)."""
    return {
        "type": "BEAT",
        "volumes": [
            {"volume": volume, "gen": generation, "inflight": inflight, "dirtyBytes": dirty, "oldestMs": oldest}
            for volume, generation, inflight, dirty, oldest in volumes
        ],
    }


def flushed(volume: str, generation: int, dirty_bytes: int) -> dict[str, Any]:
    return {"type": "FLUSHED", "volume": volume, "gen": generation, "dirtyBytes": dirty_bytes}


def detached(volume: str, generation: int) -> dict[str, Any]:
    return {"type": "DETACHED", "volume": volume, "gen": generation}


def deposit(volume: str, generation: int, init: dict[str, int]) -> dict[str, Any]:
    """Sent with a copy of the FUSE connection's descriptor."""
    return {"type": "DEPOSIT", "volume": volume, "gen": generation, "fds": 1, "init": init}


def state(volume: str, generation: int, sid: int, restarts: int, stall_ms: int, replayed: int) -> dict[str, Any]:
    """`stall_ms`: how long nobody served the volume the last time that its worker ended."""
    return {
        "type": "STATE",
        "volume": volume,
        "gen": generation,
        "sid": sid,
        "restarts": restarts,
        "lastStallMs": stall_ms,
        "replayed": replayed,
    }


def ending() -> dict[str, Any]:
    return {"type": "ENDING"}
