"""The state machine of a pod whose FUSE connections are kept: version 2 of the control protocol."""

from typing import Any

import pytest
from jfs_csi.control import frames
from jfs_csi.control.actions import (
    Account,
    Action,
    Close,
    DecideEnd,
    Ignored,
    Keep,
    Mount,
    Notify,
    RetryAfter,
    Send,
    Store,
)
from jfs_csi.control.attachment import Phase
from jfs_csi.control.pod import PodControl
from jfs_csi.fuse.init import Handover, Init

SECRETS = {"metaurl": "redis://:top-secret@db/1", "secret-key": "hush-hush"}
INIT = Init(7, 38, 1 << 39, 1 << 20, 1 << 20, 64, 48, 1, 256)


class World:
    """A pod's control with the descriptors that the node service has, and a clock."""

    def __init__(self) -> None:
        self.kept: dict[str, Handover] = {}
        self.now = 100.0
        self.control = PodControl("node-1", "uid-1", self.kept.get, lambda: self.now)

    def hello(self, session: str = "s1", attached: tuple[tuple[str, int], ...] = (), proto: int = 2) -> list[Action]:
        return self.control.hello(frames.Hello(tuple(range(1, proto + 1)), session, "0.1", attached))

    def publish(self, volume: str = "v", *, restricted: bool = False, key: str = "hush-hush") -> list[Action]:
        secrets = {**SECRETS, "secret-key": key}
        return self.control.published(volume, False, ("cache-size=1",), secrets, restricted=restricted)

    def ready(self, volume: str = "v") -> list[Action]:
        actions = self.control.frame(frames.Ready(volume, self.control.volumes[volume].generation))
        assert self.control.volumes[volume].phase is Phase.READY
        return actions


@pytest.fixture
def world() -> World:
    return World()


def served(world: World, *, restricted: bool = False) -> None:
    """A volume that a sidecar serves, its connection kept."""
    world.publish(restricted=restricted)
    if restricted:
        world.kept["v"] = Handover(INIT, resume=False)
    world.hello()
    world.ready()
    world.kept["v"] = Handover(INIT, resume=True)


def sent(actions: list[Action]) -> dict[str, Any]:
    [frame] = [action.frame for action in actions if isinstance(action, Send) and action.frame["type"] != "WELCOME"]
    return frame


def told(actions: list[Action]) -> list[str]:
    return [action.reason for action in actions if isinstance(action, Notify)]


def test_a_first_attach_in_privileged_mode_brings_no_descriptor(world: World) -> None:
    world.publish()
    actions = world.hello()
    frame = sent(actions)
    assert (frame["mode"], frame["mountpoint"]) == ("privileged", "volumes/v")
    assert (frame["fds"], frame["init"], frame["resume"]) == (0, None, False)
    assert [action.descriptor_of for action in actions if isinstance(action, Send)] == [None, None]


def test_a_first_attach_in_restricted_mode_brings_the_descriptor(world: World) -> None:
    world.kept["v"] = Handover(INIT, resume=False)
    world.publish(restricted=True)
    actions = world.hello()
    frame = sent(actions)
    assert (frame["mode"], frame["mountpoint"]) == ("restricted", "")
    assert (frame["fds"], frame["init"], frame["resume"]) == (1, INIT.to_json(), False)
    assert actions[-1] == Send(frame, "v")
    assert told(world.ready()) == ["JuiceFSMounted"]


def test_a_restricted_volume_without_a_mount_gets_one_first(world: World) -> None:
    world.publish(restricted=True)
    assert world.hello()[-1] == Mount("v")
    assert world.control.volumes["v"].generation == 0
    world.kept["v"] = Handover(INIT, resume=False)
    assert sent(world.control.mounted("v"))["fds"] == 1


def test_a_mount_that_fails_or_ends_at_once_is_told_and_tried_again(world: World) -> None:
    world.publish(restricted=True)
    world.hello()
    actions = world.control.mounted("v", "/dev/fuse cannot be opened.")
    assert told(actions) == ["JuiceFSMountFailed"]
    assert isinstance(actions[-1], RetryAfter)
    actions = world.control.mounted("v")
    assert told(actions) == ["JuiceFSMountFailed"]
    assert world.control.retry_due("v", 0) == [Mount("v")]


def test_a_successor_gets_the_connection_and_the_application_only_waits(world: World) -> None:
    served(world)
    world.control.disconnected()
    world.now += 12.5
    actions = world.hello("s2")
    frame = sent(actions)
    assert (frame["gen"], frame["fds"], frame["resume"], frame["mountpoint"]) == (2, 1, True, "volumes/v")
    assert told(actions) == []
    # It stays ready for everybody else: the application may be running on it.
    assert Store("v", 2, True) in actions
    actions = world.ready()
    assert Account("v", 1, 12.5, 0) in actions
    [notice] = [action for action in actions if isinstance(action, Notify)]
    assert notice.reason == "JuiceFSSidecarRestarted"
    assert "waited 12.5 s" in notice.message


@pytest.mark.parametrize("restricted", [False, True])
def test_a_connection_that_ended_is_lost_and_mounted_anew(world: World, restricted: bool) -> None:
    served(world, restricted=restricted)
    world.control.disconnected()
    world.kept.clear()
    actions = world.hello("s2")
    assert told(actions) == ["JuiceFSMountLost"]
    if restricted:
        assert actions[-1] == Mount("v")
    else:
        assert sent(actions)["fds"] == 0


def test_older_sidecars_get_what_they_know(world: World) -> None:
    world.publish()
    frame = sent(world.hello(proto=1))
    assert set(frame) == {"type", "volume", "gen", "mode", "mountpoint", "readOnly", "config", "secrets"}
    world.ready()
    assert world.publish(key="other") == []


def test_older_sidecars_cannot_be_restricted(world: World) -> None:
    world.publish(restricted=True)
    actions = world.hello(proto=1)
    assert isinstance(actions[-1], Close)
    assert "does not know restricted mode" in actions[-1].reason
    assert world.control.session is None


def test_a_restricted_volume_that_comes_later_is_no_endless_loop_with_an_older_sidecar(world: World) -> None:
    world.hello(proto=1)
    assert told(world.publish(restricted=True)) == ["JuiceFSMountFailed"]


def test_deposits_of_the_current_generation_are_kept(world: World) -> None:
    served(world)
    assert world.control.frame(frames.Deposit("v", 1, INIT)) == [Keep("v", INIT)]
    assert isinstance(world.control.frame(frames.Deposit("v", 0, INIT))[0], Ignored)
    assert isinstance(world.control.frame(frames.Deposit("w", 1, INIT))[0], Ignored)


def test_other_credentials_reach_a_sidecar_that_serves(world: World) -> None:
    served(world)
    frame = sent(world.publish(key="other"))
    assert (frame["type"], frame["gen"], frame["secrets"]["secret-key"]) == ("UPDATE", 1, "other")
    assert world.publish(key="other") == []
    assert told(world.control.frame(frames.Ready("v", 1))) == ["JuiceFSUpdated"]
    assert world.control.frame(frames.Ready("v", 1)) == []


def test_credentials_that_do_not_work_leave_the_volume_as_it_is(world: World) -> None:
    served(world)
    world.publish(key="wrong-one")
    actions = world.control.frame(frames.Failed("v", 1, "WrongCredentials", "Not with wrong-one.", False))
    assert told(actions) == ["JuiceFSMountFailed"]
    assert "wrong-one" not in str(actions[0])
    assert world.control.volumes["v"].phase is Phase.READY
    assert actions[-1] == RetryAfter("v", 1, 5.0)
    assert sent(world.control.retry_due("v", 1))["type"] == "UPDATE"
    assert sent(world.publish(key="right"))["secrets"]["secret-key"] == "right"
    assert told(world.control.frame(frames.Ready("v", 1))) == ["JuiceFSUpdated"]
    assert world.control.retry_due("v", 1) == []


def test_what_changed_while_the_volume_was_being_mounted_follows_at_once(world: World) -> None:
    world.publish()
    world.hello()
    assert world.publish(key="newer") == []
    frame = sent(world.ready())
    assert (frame["type"], frame["secrets"]["secret-key"]) == ("UPDATE", "newer")
    assert told(world.control.frame(frames.Ready("v", 1))) == ["JuiceFSUpdated"]


def test_after_a_restart_of_the_node_service_the_update_that_repeats_is_no_news(world: World) -> None:
    world.control.restore("v", False, ("cache-size=1",), 4, True)
    world.hello(attached=(("v", 4),))
    assert sent(world.publish())["type"] == "UPDATE"
    assert world.control.frame(frames.Ready("v", 4)) == []


def test_figures_of_replaced_workers_are_told_once(world: World) -> None:
    served(world)
    assert world.control.frame(frames.Succession("v", 1, 7, 0, 0, 0)) == []
    actions = world.control.frame(frames.Succession("v", 1, 7, 2, 31, 5))
    assert actions[0] == Account("v", 2, 0.031, 5)
    assert told(actions) == ["JuiceFSSidecarRestarted"]
    assert world.control.frame(frames.Succession("v", 1, 7, 2, 31, 5)) == []
    # The next sidecar counts from nothing again.
    world.control.disconnected()
    world.hello("s2")
    world.ready()
    assert world.control.frame(frames.Succession("v", 2, 7, 0, 0, 0)) == []
    assert world.control.frame(frames.Succession("v", 2, 7, 1, 9, 5))[0] == Account("v", 1, 0.009, 5)
    # What the container before it had not answered counts, too, and is no event: the container's end was one.
    world.control.disconnected()
    world.hello("s3")
    world.ready()
    assert world.control.frame(frames.Succession("v", 3, 7, 0, 0, 6)) == [Account("v", 0, 0.0, 6)]
    # The connection alone was cut: it goes on counting.
    world.control.disconnected()
    world.hello("s4", attached=(("v", 3),))
    assert world.control.frame(frames.Succession("v", 3, 7, 1, 9, 8))[0] == Account("v", 1, 0.009, 2)


def test_a_stall_is_told_at_its_beginning_and_its_end(world: World) -> None:
    served(world)

    def beat(oldest_ms: int) -> list[str]:
        return told(world.control.frame(frames.Beat((frames.VolumeBeat("v", 1, 3, 0, oldest_ms),))))

    assert [beat(age) for age in (0, 29_999, 30_000, 40_000, 10_000, 0, 0)] == [
        [],
        [],
        ["JuiceFSStalled"],
        [],
        [],
        ["JuiceFSRecovered"],
        [],
    ]


def test_a_sidecar_that_stays_away_is_told_once(world: World) -> None:
    served(world)
    world.control.disconnected()
    [notice] = world.control.away(5)
    assert isinstance(notice, Notify)
    assert notice.reason == "JuiceFSStalled"
    assert "operations on volume v wait" in notice.message
    assert world.control.away(5) == []
    world.hello("s2")
    assert told(world.ready()) == ["JuiceFSRecovered", "JuiceFSSidecarRestarted"]
    assert world.control.away(5) == []


def test_a_worker_whose_successor_does_not_start_is_left_to_the_sidecar(world: World) -> None:
    served(world)
    failed = frames.Failed("v", 1, "MetadataUnreachable", "No answer from db.", True)
    assert told(world.control.frame(failed)) == ["JuiceFSMountFailed"]
    assert told(world.control.frame(failed)) == ["JuiceFSMountFailed"]
    assert world.publish() == []
    world.now += 3
    assert told(world.ready()) == ["JuiceFSSidecarRestarted"]
    assert world.control.volumes["v"].generation == 1
    # Other credentials are not kept from it.
    world.control.frame(failed)
    frame = sent(world.publish(key="new"))
    assert (frame["type"], frame["gen"], frame["fds"]) == ("ATTACH", 2, 1)


def test_a_clone_that_ended_is_replaced_at_once(world: World) -> None:
    """Kernels without RESEND: the sidecar gives up a dead worker's descriptor, and asks for another by MountLost."""
    served(world, restricted=True)
    actions = world.control.frame(frames.Failed("v", 1, "MountLost", "the client ended by signal 9", True))
    assert (sent(actions)["gen"], sent(actions)["fds"], told(actions)) == (2, 1, [])
    # One that dies again at once is not chased.
    actions = world.control.frame(frames.Failed("v", 2, "MountLost", "the client ended by signal 9", True))
    assert isinstance(actions[-1], RetryAfter)


def test_a_mount_made_anew_under_a_sidecar_is_attached_again(world: World) -> None:
    served(world, restricted=True)
    world.kept["v"] = Handover(INIT, resume=False)
    actions = world.control.remounted("v")
    assert told(actions) == ["JuiceFSMountLost"]
    assert (sent(actions)["gen"], sent(actions)["resume"]) == (2, False)


def test_the_death_of_both_is_told_once(world: World) -> None:
    world.control.restore("v", False, (), 3, True, True)
    assert told(world.control.dead("v", "node service and sidecar ended together")) == ["JuiceFSMountLost"]
    assert world.control.dead("v", "node service and sidecar ended together") == []


def test_an_ending_sidecar_asks(world: World) -> None:
    served(world)
    assert world.control.frame(frames.Ending()) == [DecideEnd()]
    assert world.control.ending
    world.control.disconnected()
    world.hello("s2")
    assert not world.control.ending


def test_frames_of_version_2_are_unknown_to_a_session_of_version_1() -> None:
    packet = b'{"type":"ENDING"}'
    assert frames.decode(packet, 1) is None
    assert frames.decode(packet, 2) == frames.Ending()


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (b'{"type":"DEPOSIT","volume":"v","gen":1,"fds":2,"init":{}}', "fds"),
        (b'{"type":"DEPOSIT","volume":"v","gen":1,"fds":1,"init":{"major":7}}', "init"),
        (b'{"type":"DEPOSIT","volume":"v","gen":1,"fds":1}', "init"),
        (b'{"type":"STATE","volume":"v","gen":1,"sid":1,"restarts":-1,"lastStallMs":0,"replayed":0}', "restarts"),
        (b'{"type":"BEAT","volumes":[{"volume":"v","gen":1,"inflight":0,"dirtyBytes":0,"oldestMs":"x"}]}', "oldestMs"),
    ],
)
def test_bad_frames_of_version_2(packet: bytes, says: str) -> None:
    with pytest.raises(frames.BadFrame, match=says):
        frames.decode(packet, 2)


def test_a_lost_mount_that_is_made_anew_is_told_as_healed(world: World) -> None:
    served(world)
    assert world.control.volumes["v"].state == "Attached"
    world.control.disconnected()
    assert world.control.volumes["v"].state == "Waiting"
    del world.kept["v"]
    assert told(world.hello("s2")) == ["JuiceFSMountLost"]
    assert world.control.volumes["v"].state == "Pending"
    assert told(world.ready()) == ["JuiceFSRecovered"]
    world.kept["v"] = Handover(INIT, resume=True)
    world.control.disconnected()
    world.hello("s3")
    assert told(world.ready()) == ["JuiceFSSidecarRestarted"]
