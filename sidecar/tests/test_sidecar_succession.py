"""The sidecar's state machine with FUSE connections that are held: successions, updates, the end of the sidecar."""

import os
import socket
from typing import Any

import pytest
from jfs.sidecar import frames
from jfs.sidecar.actions import (
    Action,
    AwaitEnd,
    ClearMount,
    Command,
    Deposit,
    Drop,
    Leave,
    LetGo,
    Log,
    Send,
    Start,
    StartLater,
    State,
    Stop,
)
from jfs.sidecar.passing import receive
from jfs.sidecar.volumes import Volumes

INIT = {"major": 7, "minor": 38, "flags": 1 << 39}
OLD_INIT = {**INIT, "flags": 0}


def attach(generation: int = 1, *, restricted: bool = False, init: dict[str, int] | None = None) -> frames.Attach:
    mode, mountpoint = ("restricted", "") if restricted else ("privileged", "volumes/v")
    return frames.Attach("v", generation, mountpoint, False, (), {"metaurl": "redis://db/1"}, mode, init, False)


def ready(init: dict[str, int] | None = INIT) -> dict[str, Any]:
    return {"event": "ready", "sid": 5, "pid": 2, **({"fds": 1, "init": init} if init is not None else {})}


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions if not isinstance(action, Log)]


def sent(actions: list[Action]) -> list[dict[str, Any]]:
    return [action.frame for action in actions if isinstance(action, Send)]


@pytest.fixture
def volumes() -> Volumes:
    volumes = Volumes()
    volumes.frame(frames.Welcome("node-1", "uid", 2))
    return volumes


@pytest.fixture
def served(volumes: Volumes) -> Volumes:
    """Mounted at time 1, its connection held."""
    volumes.frame(attach())
    actions = volumes.worker_said("v", ready(), 1.0)
    assert kinds(actions) == ["Adopt", "Send", "Deposit", "State"]
    assert sent(actions) == [frames.ready("v", 1)]
    return volumes


def test_a_worker_that_dies_is_followed_at_once_on_the_same_connection(served: Volumes) -> None:
    (start,) = [one for one in served.worker_ended("v", "by signal 9", 10.0) if isinstance(one, Start)]
    assert (start.generation, start.connected) == (1, True)
    assert (start.document["init"], start.document["resume"]) == (INIT, True)
    assert served.attached() == [("v", 1)]
    actions = served.worker_said("v", ready(), 10.04)
    assert sent(actions) == []  # READY was said in this generation
    (state,) = [one.frame for one in actions if isinstance(one, State)]
    assert (state["sid"], state["restarts"], state["lastStallMs"]) == (5, 1, 39)
    assert [one.frame["init"] for one in actions if isinstance(one, Deposit)] == [INIT]


def test_workers_that_keep_dying_are_followed_later_and_later(served: Volumes) -> None:
    delays = []
    for _ in range(14):
        actions = served.worker_ended("v", "by signal 9", 1.0)
        delays.append(next((one.seconds for one in actions if isinstance(one, StartLater)), 0.0))
        if delays[-1]:
            assert kinds(served.due("v")) == ["Start"]
        served.worker_said("v", ready(), 1.0)
    assert delays[:5] == [0.0] * 5
    assert delays[5:] == sorted(delays[5:])
    assert delays[-1] == 2.0
    served.worker_said("v", ready(), 1.0)
    assert "Start" in kinds(served.worker_ended("v", "by signal 9", 60.0))


def test_a_successor_that_fails_is_told_and_tried_again(served: Volumes) -> None:
    served.worker_ended("v", "by signal 9", 10.0)
    event = {"event": "error", "code": "MetadataUnreachable", "message": "No.", "retryable": True}
    assert [one["code"] for one in sent(served.worker_said("v", event, 10.1))] == ["MetadataUnreachable"]
    assert kinds(served.worker_ended("v", "with exit status 1", 10.2)) == ["Start"]
    assert served.attached() == [("v", 1)]
    actions = served.worker_said("v", ready(), 12.0)
    assert sent(actions) == [frames.ready("v", 1)]  # since an error was said
    # The node service may be faster: the next generation goes on with the connection that is held.
    served.worker_ended("v", "by signal 9", 20.0)
    served.worker_said("v", event, 20.1)
    assert kinds(served.frame(attach(2))) == []
    (start,) = [one for one in served.worker_ended("v", "with exit status 1", 20.2) if isinstance(one, Start)]
    assert (start.generation, start.connected) == (2, True)
    assert sent(served.worker_said("v", ready(), 20.3)) == [frames.ready("v", 2)]


def test_a_connection_that_ended_is_a_lost_mount(served: Volumes) -> None:
    actions = served.worker_ended("v", "with exit status 0", 10.0, clean=True)
    assert kinds(actions) == ["Drop", "Send"]
    assert sent(actions)[0]["code"] == "MountLost"
    assert served.attached() == []


def test_a_connection_that_is_given_is_served_and_not_mounted(volumes: Volumes) -> None:
    actions = volumes.frame(attach(restricted=True, init=INIT))
    assert kinds(actions) == ["Adopt", "Start"]
    start = actions[-1]
    assert isinstance(start, Start)
    assert (start.connected, start.mountpoint, start.document["resume"]) == (True, "", False)
    assert sent(volumes.worker_said("v", ready(), 1.0)) == [frames.ready("v", 1)]
    actions = volumes.frame(frames.Detach("v", 1))
    assert kinds(actions) == ["Stop"]
    assert kinds(volumes.worker_ended("v", "with exit status 0", 2.0)) == ["Drop", "Send"]


def test_a_connection_that_was_served_is_kept_though_its_first_worker_here_fails(volumes: Volumes) -> None:
    """As when the database is away while the container starts again: a node service that is replaced meanwhile gets it from here."""
    given = attach(4, restricted=True, init=INIT)._replace(resume=True)
    (start,) = [one for one in volumes.frame(given) if isinstance(one, Start)]
    assert (start.document["resume"], start.document["check"]) == (True, "reachable")
    event = {"event": "error", "code": "MetadataUnreachable", "message": "No.", "retryable": True}
    assert sent(volumes.worker_said("v", event, 1.0))[0]["code"] == "MetadataUnreachable"
    assert kinds(volumes.worker_ended("v", "with exit status 1", 1.1)) == ["Start"]
    assert volumes.attached() == [("v", 4)]
    volumes.disconnected()
    actions = volumes.frame(frames.Welcome("node-1", "uid", 2))
    assert [one.frame["gen"] for one in actions if isinstance(one, Deposit)] == [4]
    assert sent(volumes.worker_said("v", ready(), 2.0)) == [frames.ready("v", 4)]
    # one that nobody has served yet is the node service's alone
    fresh = Volumes()
    fresh.frame(frames.Welcome("node-1", "uid", 2))
    fresh.frame(attach(restricted=True, init=INIT))
    fresh.worker_said("v", event, 1.0)
    assert kinds(fresh.worker_ended("v", "with exit status 1", 1.1)) == ["Drop"]
    assert fresh.attached() == []


def test_a_successor_looks_at_the_storage_only_if_its_document_is_new(served: Volumes) -> None:
    def started(actions: list[Action]) -> object:
        (start,) = [one for one in actions if isinstance(one, Start)]
        return start.document["check"]

    assert started(served.worker_ended("v", "by signal 9", 2.0)) == "none"
    served.worker_said("v", ready(), 2.1)
    served.frame(frames.Update("v", 1, ("attr-cache=3",), {"metaurl": "redis://other/1"}))
    assert started(served.worker_ended("v", "with exit status 0", 3.0, clean=True)) == "full"
    served.worker_said("v", ready(), 3.1)
    assert started(served.worker_ended("v", "by signal 9", 4.0)) == "none"


def test_restricted_without_resending_holds_nothing(volumes: Volumes) -> None:
    volumes.frame(attach(restricted=True, init=OLD_INIT))
    assert "Drop" in kinds(volumes.worker_said("v", ready(OLD_INIT), 1.0))
    actions = volumes.worker_ended("v", "by signal 9", 5.0)
    assert sent(actions)[0]["code"] == "MountLost"


def test_an_update_changes_worker_and_document(served: Volumes) -> None:
    update = frames.Update("v", 1, ("attr-cache=3",), {"metaurl": "redis://other/1"})
    assert kinds(served.frame(update)) == ["Leave"]
    (start,) = [
        one for one in served.worker_ended("v", "with exit status 0", 2.0, clean=True) if isinstance(one, Start)
    ]
    assert (start.document["options"], start.document["meta_url"]) == (["attr-cache=3"], "redis://other/1")
    actions = served.worker_said("v", ready(), 2.1)
    assert sent(actions) == [frames.ready("v", 1)]
    assert served.running["v"].restarts == 0


def test_an_update_that_brings_nothing_new_replaces_nobody(served: Volumes) -> None:
    """As after each restart of the node service."""
    same = frames.Update("v", 1, (), {"metaurl": "redis://db/1"})
    actions = served.frame(same)
    assert kinds(actions) == ["Send"]
    assert sent(actions) == [frames.ready("v", 1)]
    # one that comes while a successor starts is judged by what that one works with
    served.worker_ended("v", "by signal 9", 2.0)
    assert kinds(served.frame(same)) == []
    assert "Leave" not in kinds(served.worker_said("v", ready(), 2.1))


def test_an_update_that_does_not_work_is_taken_back(served: Volumes) -> None:
    served.frame(frames.Update("v", 1, ("nonsense",), {}))
    served.worker_ended("v", "with exit status 0", 2.0)
    event = {"event": "error", "code": "BadOption", "message": "No such option.", "retryable": False}
    assert sent(served.worker_said("v", event, 2.1))[0]["code"] == "BadOption"
    (start,) = [one for one in served.worker_ended("v", "with exit status 1", 2.2) if isinstance(one, Start)]
    assert start.document["options"] == []
    served.worker_said("v", ready(), 2.3)
    served.frame(frames.Update("v", 1, ("crash",), {}))
    served.worker_ended("v", "with exit status 0", 3.0)
    actions = served.worker_ended("v", "by signal 11", 3.1)
    assert sent(actions)[0]["code"] == "WorkerEnded"
    assert "Start" in kinds(actions)


def test_an_update_waits_for_a_worker_and_needs_a_connection(served: Volumes) -> None:
    served.worker_ended("v", "by signal 9", 2.0)
    assert kinds(served.frame(frames.Update("v", 1, ("a",), {}))) == []
    assert "Leave" in kinds(served.worker_said("v", ready(), 2.1))
    assert kinds(served.frame(frames.Update("v", 9, ("a",), {}))) == []
    other = Volumes()
    other.frame(frames.Welcome("n", "u", 2))
    other.frame(attach())
    other.worker_said("v", ready(None), 1.0)
    assert sent(other.frame(frames.Update("v", 1, (), {"metaurl": "redis://db/1"}))) == [frames.ready("v", 1)]
    assert sent(other.frame(frames.Update("v", 1, ("a",), {})))[0]["code"] == "CannotChange"


def test_a_new_connection_to_the_node_service_is_told_everything(served: Volumes) -> None:
    served.disconnected()
    assert served.attached() == [("v", 1)]
    actions = served.frame(frames.Welcome("node-1", "uid", 2))
    assert kinds(actions) == ["Deposit", "State"]
    served.disconnected()
    assert kinds(served.frame(frames.Welcome("node-1", "uid", 1))) == []


def test_the_end_asks_and_leaves(served: Volumes) -> None:
    assert served.terminate(25.0) == [Command("v", {"command": "quiesce", "deadline_ms": 15_000})]
    assert not served.ended
    assert served.worker_said("v", {"event": "flushed", "dirty_bytes": 0}, 5.0) == [
        Send(frames.ending()),
        AwaitEnd(3.0),
    ]
    assert served.frame(frames.End(True)) == [Leave("v", 7.0)]
    assert kinds(served.worker_ended("v", "with exit status 0", 6.0)) == ["Drop"]
    assert served.ended


def test_the_end_asks_and_unmounts(served: Volumes) -> None:
    served.terminate(25.0)
    served.worker_said("v", {"event": "flushed", "dirty_bytes": 0}, 5.0)
    assert served.frame(frames.End(False)) == [Stop("v", 7.0)]
    assert kinds(served.worker_ended("v", "with exit status 0", 6.0)) == ["ClearMount", "Drop"]


@pytest.mark.parametrize("why", ["no answer", "connection lost"])
def test_the_end_without_an_answer_leaves_what_is_in_use(served: Volumes, why: str) -> None:
    served.terminate(25.0)
    served.worker_said("v", {"event": "flushed", "dirty_bytes": 0}, 5.0)
    actions = served.undecided() if why == "no answer" else served.disconnected()
    assert actions == [LetGo("v", "volumes/v", 7.0)]
    actions = served.worker_ended("v", "with exit status 0", 6.0)
    assert not any(isinstance(action, ClearMount) for action in actions)
    assert served.ended


def test_a_worker_that_dies_while_the_sidecar_ends_is_not_followed(served: Volumes) -> None:
    served.terminate(25.0)
    assert kinds(served.worker_ended("v", "by signal 9", 2.0)) == ["Send", "AwaitEnd"]
    assert not served.ended
    served.frame(frames.End(True))
    assert served.ended


def test_a_volume_that_waits_for_its_next_worker_is_let_go_at_the_end(served: Volumes) -> None:
    for _ in range(6):
        served.worker_ended("v", "by signal 9", 1.0)
    assert served.phases() == {"v": "waiting"}
    actions = served.terminate(25.0)
    assert kinds(actions) == ["Send", "AwaitEnd"]
    assert kinds(served.frame(frames.End(False))) == ["ClearMount", "Drop"]
    assert served.ended
    assert kinds(served.due("v")) == []


def test_detach_of_a_volume_that_waits(served: Volumes) -> None:
    for _ in range(6):
        served.worker_ended("v", "by signal 9", 1.0)
    actions = served.frame(frames.Detach("v", 1))
    assert actions == [ClearMount("volumes/v"), Drop("v"), Send(frames.detached("v", 1))]


def test_descriptors_that_come_are_not_inherited() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull, "rb") as file:
        socket.send_fds(theirs, [b"frame"], [file.fileno(), file.fileno(), file.fileno()])
        data, descriptors = receive(ours, 100, 2)
        assert (data, len(descriptors)) == (b"frame", 2)
        assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        theirs.send(b"without")
        assert receive(ours, 100, 2) == (b"without", [])
