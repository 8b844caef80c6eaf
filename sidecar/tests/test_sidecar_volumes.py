"""The sidecar's state machine."""

from typing import Any

import pytest
from jfs.sidecar import frames
from jfs.sidecar.actions import Action, ClearMount, Close, Command, Drop, Log, Send, Start, Stop
from jfs.sidecar.volume import Phase, document
from jfs.sidecar.volumes import Volumes


def attach(generation: int = 1, volume: str = "v", **secrets: Any) -> frames.Attach:
    return frames.Attach(volume, generation, f"volumes/{volume}", False, (), {"metaurl": "redis://db/1", **secrets})


def sent(actions: list[Action]) -> list[dict[str, Any]]:
    return [action.frame for action in actions if isinstance(action, Send)]


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions if not isinstance(action, Log | Drop)]


@pytest.fixture
def volumes() -> Volumes:
    volumes = Volumes()
    volumes.frame(frames.Welcome("node-1", "uid"))
    return volumes


def mounted(volumes: Volumes, generation: int = 1, volume: str = "v") -> None:
    volumes.frame(attach(generation, volume))
    volumes.worker_said(volume, {"event": "ready", "sid": 1, "pid": 2})


def test_attach_starts_a_worker_and_ready_is_said(volumes: Volumes) -> None:
    (start,) = volumes.frame(attach())
    assert isinstance(start, Start)
    assert (start.volume, start.generation, start.mountpoint) == ("v", 1, "volumes/v")
    assert "redis" not in repr(start)
    assert volumes.attached() == []
    assert sent(volumes.worker_said("v", {"event": "ready"})) == [frames.ready("v", 1)]
    assert volumes.attached() == [("v", 1)]


def test_the_workers_document() -> None:
    secrets: dict[str, Any] = {
        "name": "vol",
        "storage": "s3",
        "bucket": "http://s3/b",
        "access-key": "a",
        "secret-key": "s",
        "token": "t",
        "passphrase": "p",
        "envs": {"A": "b"},
    }
    assert document(attach(1, **secrets)) == {
        "meta_url": "redis://db/1",
        "mountpoint": "volumes/v",
        "read_only": False,
        "options": [],
        "storage": {
            "storage": "s3",
            "bucket": "http://s3/b",
            "access_key": "a",
            "secret_key": "s",
            "session_token": "t",
        },
        "envs": {"A": "b"},
        "name": "vol",
        "metrics": None,
        "passphrase": "p",
    }
    assert {"storage", "passphrase"}.isdisjoint(document(attach()))


def test_older_generations_are_dropped(volumes: Volumes) -> None:
    mounted(volumes, 5)
    assert kinds(volumes.frame(attach(5))) == []
    assert kinds(volumes.frame(attach(4))) == []
    assert kinds(volumes.frame(frames.Quiesce("v", 4, 1000))) == []
    assert kinds(volumes.frame(frames.Detach("v", 4))) == []
    assert volumes.attached() == [("v", 5)]


def test_a_newer_generation_waits_for_the_old_worker_to_end(volumes: Volumes) -> None:
    mounted(volumes, 1)
    assert kinds(volumes.frame(attach(2))) == ["Stop"]
    assert kinds(volumes.frame(attach(3))) == []
    assert kinds(volumes.worker_said("v", {"event": "ready"})) == []
    actions = volumes.worker_ended("v", "with exit status 0")
    assert kinds(actions) == ["Start"]
    assert sent(actions) == []
    assert volumes.running["v"].generation == 3


def test_an_error_is_passed_on_and_the_end_is_not_a_second_one(volumes: Volumes) -> None:
    volumes.frame(attach())
    event = {"event": "error", "code": "WrongCredentials", "message": "No.", "retryable": False}
    assert sent(volumes.worker_said("v", event)) == [frames.error("v", 1, "WrongCredentials", "No.", False)]
    assert kinds(volumes.worker_ended("v", "with exit status 1")) == []
    assert kinds(volumes.frame(attach(2))) == ["Start"]


def test_a_worker_that_ends_unasked_is_reported(volumes: Volumes) -> None:
    volumes.frame(attach())
    (frame,) = sent(volumes.worker_ended("v", "by signal 9"))
    assert (frame["type"], frame["code"], frame["retryable"]) == ("ERROR", "WorkerEnded", True)
    mounted(volumes, 2)
    (frame,) = sent(volumes.worker_ended("v", "by signal 9"))
    assert (frame["code"], frame["message"], frame["gen"]) == ("MountLost", "the client ended by signal 9", 2)
    assert volumes.attached() == []


def test_quiesce_and_detach(volumes: Volumes) -> None:
    mounted(volumes)
    (command,) = volumes.frame(frames.Quiesce("v", 1, 4000))
    assert command == Command("v", {"command": "quiesce", "deadline_ms": 4000})
    assert sent(volumes.worker_said("v", {"event": "flushed", "dirty_bytes": 0})) == [frames.flushed("v", 1, 0)]
    assert sent(volumes.worker_said("v", {"event": "flushed", "dirty_bytes": 0})) == []
    assert kinds(volumes.frame(frames.Detach("v", 1))) == ["Stop"]
    assert kinds(volumes.frame(frames.Detach("v", 1))) == []
    actions = volumes.worker_ended("v", "with exit status 0")
    assert kinds(actions) == ["ClearMount", "Send"]
    assert sent(actions) == [frames.detached("v", 1)]


def test_quiesce_and_detach_of_what_is_not_mounted(volumes: Volumes) -> None:
    assert sent(volumes.frame(frames.Quiesce("v", 1, 4000))) == [frames.flushed("v", 1, 0)]
    actions = volumes.frame(frames.Detach("v", 1))
    assert actions == [ClearMount("volumes/v"), Send(frames.detached("v", 1))]


def test_a_worker_that_dies_while_flushing_answers_with_what_was_dirty(volumes: Volumes) -> None:
    mounted(volumes)
    volumes.worker_said("v", {"event": "beat", "inflight": 2, "dirty_bytes": 4096})
    assert volumes.beats() == [("v", 1, 2, 4096, 0)]
    volumes.frame(frames.Quiesce("v", 1, 4000))
    assert frames.flushed("v", 1, 4096) in sent(volumes.worker_ended("v", "by signal 9"))


def test_detach_during_a_change_of_generation_cancels_the_successor(volumes: Volumes) -> None:
    mounted(volumes)
    volumes.frame(attach(2))
    volumes.frame(frames.Detach("v", 2))
    actions = volumes.worker_ended("v", "with exit status 0")
    assert "Start" not in kinds(actions)
    assert sent(actions)[0]["type"] == "DETACHED"


def test_generations_begin_anew_after_a_detach_and_in_a_new_session(volumes: Volumes) -> None:
    mounted(volumes, 5)
    volumes.frame(frames.Detach("v", 5))
    volumes.worker_ended("v", "with exit status 0")
    assert kinds(volumes.frame(attach(1))) == ["Start"]
    volumes.worker_ended("v", "by signal 9")
    assert kinds(volumes.frame(attach(1))) == []
    volumes.disconnected()
    volumes.frame(frames.Welcome("node-1", "uid"))
    assert kinds(volumes.frame(attach(1))) == ["Start"]


def test_the_end_of_the_pod(volumes: Volumes) -> None:
    mounted(volumes, 1, "v")
    mounted(volumes, 1, "w")
    assert volumes.terminate(25.0) == [Stop("v", 25.0), Stop("w", 25.0)]
    assert kinds(volumes.frame(attach(2))) == []
    assert kinds(volumes.worker_ended("v", "with exit status 0")) == ["ClearMount"]
    assert list(volumes.running) == ["w"]


def test_the_order_of_frames() -> None:
    volumes = Volumes()
    assert kinds(volumes.frame(attach())) == ["Close"]
    refused = volumes.frame(frames.Refused("Use images of the same release."))
    assert isinstance(refused[0], Close)
    assert "same release" in refused[0].reason
    assert kinds(volumes.frame(frames.Welcome("n", "u"))) == []
    assert kinds(volumes.frame(frames.Welcome("n", "u"))) == ["Close"]
    volumes.disconnected()
    assert not volumes.welcomed


def test_strange_events_are_ignored(volumes: Volumes) -> None:
    volumes.frame(attach())
    for event in ({}, {"event": "novelty"}, {"event": "beat", "inflight": -1, "dirty_bytes": "x"}, {"event": 7}):
        assert kinds(volumes.worker_said("v", event)) == []
    assert volumes.running["v"].phase is Phase.STARTING
    assert (volumes.running["v"].inflight, volumes.running["v"].dirty_bytes) == (0, 0)
