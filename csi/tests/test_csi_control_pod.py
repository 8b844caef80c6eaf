"""The state machine of a pod's control session."""

from typing import Any

import pytest
from jfs_csi.control import frames
from jfs_csi.control.actions import (
    Action,
    Close,
    Ignored,
    Notify,
    RetryAfter,
    Send,
    Store,
)
from jfs_csi.control.attachment import Phase
from jfs_csi.control.pod import PodControl

SECRETS = {"metaurl": "redis://:top-secret@db/1", "secret-key": "hush-hush"}
HELLO = frames.Hello((1,), "s1", "0.1")


def types(actions: list[Action]) -> list[str]:
    return [action.frame["type"] if isinstance(action, Send) else type(action).__name__ for action in actions]


def attach_frame(actions: list[Action]) -> dict[str, Any]:
    return next(action.frame for action in actions if isinstance(action, Send) and action.frame["type"] == "ATTACH")


@pytest.fixture
def control() -> PodControl:
    return PodControl("node-1", "uid-1")


def ready(control: PodControl, volume: str = "v") -> None:
    control.published(volume, False, (), SECRETS)
    control.hello(HELLO)
    control.frame(frames.Ready(volume, control.volumes[volume].generation))
    assert control.volumes[volume].phase is Phase.READY


def test_publish_before_hello_attaches_at_hello(control: PodControl) -> None:
    assert control.published("v", True, ("cache-size=1",), SECRETS) == []
    actions = control.hello(HELLO)
    # The generation is on disk before the frame leaves.
    assert types(actions) == ["WELCOME", "Store", "ATTACH"]
    assert attach_frame(actions) == {
        "type": "ATTACH",
        "volume": "v",
        "gen": 1,
        "mode": "privileged",
        "mountpoint": "volumes/v",
        "readOnly": True,
        "config": {"options": ["cache-size=1"]},
        "secrets": SECRETS,
    }


def test_publish_after_hello_attaches_at_once(control: PodControl) -> None:
    assert types(control.hello(HELLO)) == ["WELCOME"]
    assert types(control.published("v", False, (), SECRETS)) == ["Store", "ATTACH"]
    assert control.published("v", False, (), SECRETS) == []


def test_ready_is_stored_and_announced_once(control: PodControl) -> None:
    control.published("v", False, (), SECRETS)
    control.hello(HELLO)
    actions = control.frame(frames.Ready("v", 1))
    assert actions[0] == Store("v", 1, True)
    assert isinstance(actions[1], Notify)
    assert actions[1].reason == "JuiceFSMounted"
    assert control.frame(frames.Ready("v", 1)) == []


def test_a_failure_is_announced_without_credentials_and_retried_with_growing_delays(control: PodControl) -> None:
    control.published("v", False, (), SECRETS)
    control.hello(HELLO)
    delays = []
    for generation in range(1, 9):
        message = "Cannot reach redis://:top-secret@db/1 with key hush-hush."
        actions = control.frame(frames.Failed("v", generation, "MetadataUnreachable", message, True))
        notify, retry = actions[1], actions[2]
        assert isinstance(notify, Notify)
        assert notify.reason == "JuiceFSMountFailed"
        assert "MetadataUnreachable" in notify.message
        assert "top-secret" not in notify.message
        assert "hush-hush" not in notify.message
        assert isinstance(retry, RetryAfter)
        delays.append(retry.seconds)
        assert attach_frame(control.retry_due("v", generation))["gen"] == generation + 1
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]


def test_what_is_not_retryable_is_still_tried_up_to_every_minute(control: PodControl) -> None:
    control.published("v", False, (), SECRETS)
    control.hello(HELLO)
    delays = []
    for generation in range(1, 7):
        retry = control.frame(frames.Failed("v", generation, "NotFormatted", "No.", False))[-1]
        assert isinstance(retry, RetryAfter)
        delays.append(retry.seconds)
        assert attach_frame(control.retry_due("v", generation))["gen"] == generation + 1
    assert delays == [5, 10, 20, 40, 60, 60]


def test_other_secrets_are_tried_at_once(control: PodControl) -> None:
    control.published("v", False, (), SECRETS)
    control.hello(HELLO)
    assert control.frame(frames.Failed("v", 1, "WrongCredentials", "No.", False))
    assert control.published("v", False, (), SECRETS) == []
    assert attach_frame(control.published("v", False, (), {**SECRETS, "secret-key": "right"}))["gen"] == 2
    assert control.retry_due("v", 1) == []


def test_frames_of_older_generations_and_unknown_volumes_are_dropped(control: PodControl) -> None:
    control.published("v", False, (), SECRETS, generation=6)
    control.hello(HELLO)
    for frame in (frames.Ready("v", 6), frames.Ready("other", 7), frames.Failed("v", 6, "c", "m", True)):
        assert isinstance(control.frame(frame)[0], Ignored)
    assert control.volumes["v"].phase is Phase.ATTACHING


def test_a_reconnecting_sidecar_keeps_its_mounts(control: PodControl) -> None:
    ready(control)
    control.disconnected()
    actions = control.hello(frames.Hello((1,), "s1", "0.1", (("v", 1),)))
    assert types(actions) == ["WELCOME", "Store"]
    assert control.volumes["v"].phase is Phase.READY


def test_a_new_sidecar_that_lost_the_mount_is_attached_anew(control: PodControl) -> None:
    ready(control)
    control.disconnected()
    actions = control.hello(frames.Hello((1,), "s2", "0.1"))
    assert types(actions) == ["WELCOME", "Store", "Notify", "Store", "ATTACH"]
    lost = actions[2]
    assert isinstance(lost, Notify)
    assert lost.reason == "JuiceFSMountLost"
    assert attach_frame(actions)["gen"] == 2


def test_a_lost_mount_is_announced_once_and_attached_after_a_second(control: PodControl) -> None:
    ready(control)
    actions = control.frame(frames.Failed("v", 1, "MountLost", "the client ended by signal 9", True))
    assert types(actions) == ["Store", "Notify", "RetryAfter"]
    assert attach_frame(control.retry_due("v", 1))["gen"] == 2
    again = control.frame(frames.Failed("v", 2, "WorkerEnded", "m", True))
    assert [action.reason for action in again if isinstance(action, Notify)] == ["JuiceFSMountFailed"]


def test_after_a_restart_nothing_is_attached_without_secrets(control: PodControl) -> None:
    control.restore("v", False, (), 4, True)
    assert types(control.hello(HELLO)) == ["WELCOME", "Store", "Notify"]
    assert attach_frame(control.published("v", False, (), SECRETS))["gen"] == 5


def test_after_a_restart_a_worker_still_starting_may_finish(control: PodControl) -> None:
    control.restore("v", False, (), 4, False)
    control.hello(HELLO)
    assert types(control.frame(frames.Ready("v", 4))) == ["Store", "Notify"]
    assert control.published("v", False, (), SECRETS) == []


def test_an_attached_volume_published_later_is_taken_as_it_is(control: PodControl) -> None:
    control.hello(frames.Hello((1,), "s1", "0.1", (("v", 9),)))
    assert control.published("v", False, (), SECRETS) == [Store("v", 9, True)]
    assert control.volumes["v"].phase is Phase.READY


def test_a_second_sidecar_is_refused_while_the_first_is_connected(control: PodControl) -> None:
    control.hello(HELLO)
    actions = control.hello(frames.Hello((1,), "s2", "0.1"))
    assert types(actions) == ["REFUSED", "Close"]
    assert control.session == "s1"
    assert types(control.hello(HELLO)) == ["WELCOME"]


def test_a_sidecar_of_another_protocol_is_refused_with_a_sentence(control: PodControl) -> None:
    actions = control.hello(frames.Hello((3,), "s1", "9.0"))
    assert types(actions) == ["REFUSED", "Close"]
    assert isinstance(actions[0], Send)
    assert "same release" in actions[0].frame["message"]
    assert control.session is None


def test_a_second_hello_closes(control: PodControl) -> None:
    control.hello(HELLO)
    assert isinstance(control.frame(HELLO)[0], Close)


def test_beats_are_kept_for_the_current_generation(control: PodControl) -> None:
    ready(control)
    control.frame(frames.Beat((frames.VolumeBeat("v", 1, 3, 4096), frames.VolumeBeat("other", 1, 0, 0))))
    assert control.volumes["v"].beat == frames.VolumeBeat("v", 1, 3, 4096)
    control.frame(frames.Beat((frames.VolumeBeat("v", 0, 9, 9),)))
    assert control.volumes["v"].beat == frames.VolumeBeat("v", 1, 3, 4096)


def test_an_unpublished_volume_is_forgotten(control: PodControl) -> None:
    ready(control)
    control.unpublished("v")
    assert isinstance(control.frame(frames.Ready("v", 1))[0], Ignored)
    assert control.retry_due("v", 1) == []


def test_published_again_a_volume_goes_on_with_newer_generations(control: PodControl) -> None:
    ready(control)
    control.unpublished("v")
    assert attach_frame(control.published("v", False, (), SECRETS))["gen"] == 2


def test_secrets_are_not_in_representations(control: PodControl) -> None:
    control.published("v", False, (), SECRETS)
    actions = control.hello(HELLO)
    assert "hush" not in repr(control.volumes)
    assert "hush" not in repr(actions)
