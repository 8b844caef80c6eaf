"""The node service's codec on the shared packets."""

import json

import pytest
from csi_frame_cases import Case, cases
from jfs_csi.control import frames


@pytest.mark.parametrize("case", cases("valid.json", "node"))
def test_valid_frames_decode(case: Case) -> None:
    assert frames.decode(case.packet) is not None


@pytest.mark.parametrize("case", cases("unknown.json", "node"))
def test_unknown_types_are_ignored(case: Case) -> None:
    assert frames.decode(case.packet) is None
    assert frames.kind(case.packet) == json.loads(case.packet)["type"]


@pytest.mark.parametrize("case", [*cases("truncated.json", "node"), *cases("oversized.json", "node")])
def test_bad_frames_are_refused_with_a_sentence(case: Case) -> None:
    with pytest.raises(frames.BadFrame, match=case.says):
        frames.decode(case.packet)


def test_hello_lists_what_is_attached() -> None:
    hello = frames.decode(
        b'{"type":"HELLO","proto":[1],"session":"s","sidecarVersion":"1","attached":[{"volume":"v","gen":4}]}'
    )
    assert hello == frames.Hello((1,), "s", "1", (("v", 4),))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(frames.BadFrame):
        frames.decode(b"[" * 100_000)


def test_a_huge_secret_is_refused_with_its_size_not_its_text() -> None:
    frame = frames.attach("v", 1, "volumes/v", False, (), {"envs": {"A": "hush" * frames.LIMIT}})
    with pytest.raises(frames.BadFrame, match="exceeds the limit") as refusal:
        frames.encode(frame)
    assert "hush" not in str(refusal.value)


def test_long_messages_are_cut() -> None:
    text = "x" * 5000
    failed = frames.decode(
        json.dumps({"type": "ERROR", "volume": "v", "gen": 1, "code": "c", "message": text, "retryable": True}).encode()
    )
    assert isinstance(failed, frames.Failed)
    assert len(failed.message) == frames.LONGEST_MESSAGE
