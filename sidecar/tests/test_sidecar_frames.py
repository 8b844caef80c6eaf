"""The sidecar's codec on the packets that both ends share (they lie with the node service's tests)."""

import json
from pathlib import Path
from typing import Any

import pytest
from jfs.sidecar import frames

DIRECTORY = Path(__file__).resolve().parents[2] / "csi" / "tests" / "frames"


def packets(*files: str) -> list[Any]:
    """(packet, what the refusal says, frames before it) of the cases that go to the sidecar."""
    found = []
    for file in files:
        for case in json.loads((DIRECTORY / file).read_text()):
            if case["to"] == "sidecar":
                frame = {**case.get("frame", {}), **({"padding": "x" * case["pad"]} if "pad" in case else {})}
                packet = case["packet"].encode() if "packet" in case else json.dumps(frame).encode()
                found.append(pytest.param(packet, case.get("says", ""), case.get("after", []), id=case["name"]))
    assert found
    return found


@pytest.mark.parametrize(("packet", "says", "after"), packets("valid.json"))
def test_valid_frames_decode(packet: bytes, says: str, after: list[Any]) -> None:
    assert frames.decode(packet) is not None


@pytest.mark.parametrize(("packet", "says", "after"), packets("unknown.json"))
def test_unknown_types_are_ignored(packet: bytes, says: str, after: list[Any]) -> None:
    assert frames.decode(packet) is None
    assert frames.kind(packet) == json.loads(packet)["type"]


@pytest.mark.parametrize(("packet", "says", "after"), packets("truncated.json", "oversized.json", "wrong_proto.json"))
def test_bad_frames_are_refused_with_a_sentence(packet: bytes, says: str, after: list[Any]) -> None:
    with pytest.raises(frames.BadFrame, match=says):
        frames.decode(packet)


def test_attach() -> None:
    packet = json.dumps(
        {
            "type": "ATTACH",
            "volume": "pv-1",
            "gen": 7,
            "mode": "privileged",
            "mountpoint": "volumes/pv-1",
            "readOnly": True,
            "config": {"options": ["cache-size=1"]},
            "secrets": {"metaurl": "redis://:hush-hush@db/1"},
        }
    ).encode()
    attach = frames.decode(packet)
    assert isinstance(attach, frames.Attach)
    assert attach[:5] == ("pv-1", 7, "volumes/pv-1", True, ("cache-size=1",))
    assert "hush-hush" not in repr(attach)


def test_what_we_send_is_what_the_contract_says() -> None:
    assert json.loads(frames.encode(frames.hello("s", "0.1", [("v", 3)]))) == {
        "type": "HELLO",
        "proto": [1, 2],
        "session": "s",
        "sidecarVersion": "0.1",
        "attached": [{"volume": "v", "gen": 3}],
    }
    assert frames.beat([("v", 3, 1, 2, 40)])["volumes"] == [
        {"volume": "v", "gen": 3, "inflight": 1, "dirtyBytes": 2, "oldestMs": 40}
    ]
    assert frames.error("v", 3, "c", "m", True)["retryable"] is True
