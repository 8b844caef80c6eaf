"""A rollout of a sidecar image: one pod at a time, stopped by the first that does not come back. The kubelet is played."""

import asyncio
import datetime
import json
from typing import Any

import pytest
from jfs_api import names
from jfs_api.conditions import Condition
from jfs_operator.api import (
    EVENTS,
    JUICEFS_VOLUMES,
    PERSISTENT_VOLUMES,
    PODS,
    ApiError,
    Conflict,
    Object,
    Resource,
    annotation,
)
from jfs_operator.memory import MemoryApi
from jfs_operator.recorder import Recorder
from jfs_operator.rollout import runner
from jfs_operator.rollout.members import members
from jfs_operator.rollout.plan import RFC_3339, Settings
from jfs_operator.rollout.runner import Rollout

OLD, NEW, BAD = "sidecar:1", "sidecar:2", "sidecar:bad"
START = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


class Kubelet(MemoryApi):
    """Starts a sidecar again when its image changes, at the next look at its pod; images in `bad` never come up."""

    def __init__(self) -> None:
        super().__init__()
        self.time = START
        self.runs: dict[str, str] = {}  # the image that a pod's sidecar runs
        self.bad: dict[str, str] = {}  # image → reason of waiting, empty: it runs and never gets ready
        self.history: list[tuple[str, str]] = []

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        if resource is PODS:
            self.time += datetime.timedelta(seconds=1)
            pod = super().get(resource, namespace, name)
            if pod is not None:
                self._start(pod)
        return super().get(resource, namespace, name)

    def _start(self, pod: Object) -> None:
        name, image = pod["metadata"]["name"], pod["spec"]["initContainers"][0]["image"]
        if self.runs.get(name) == image:
            return
        self.runs[name] = image
        self.history.append((name, image))
        (status,) = pod["status"]["initContainerStatuses"]
        reason = self.bad.get(image)
        running = {"running": {"startedAt": self.time.strftime(RFC_3339)}}
        if reason is None:
            new = {"restartCount": status["restartCount"] + 1, "started": True, "ready": True, "state": running}
        elif reason == "pull":  # as the kubelet tells it of a container that ran before: by events
            new = {"started": False, "ready": False, "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}
            place = {"uid": pod["metadata"]["uid"], "fieldPath": "spec.initContainers{juicefs-sidecar}"}
            event = {"involvedObject": place, "reason": "Failed", "message": "Error: ImagePullBackOff"}
            stamp = {"lastTimestamp": self.time.strftime(RFC_3339), "metadata": {"name": "pull", "namespace": "team"}}
            self.create(EVENTS, {**event, **stamp})
        elif reason:
            new = {
                "started": False,
                "ready": False,
                "state": {"waiting": {"reason": reason, "message": "no such image"}},
            }
        else:
            new = {"restartCount": status["restartCount"] + 1, "started": False, "ready": False, "state": running}
        changed = {"status": {"initContainerStatuses": [{**status, **new}]}}
        self.patch(PODS, pod["metadata"]["namespace"], name, changed)

    def add_volume(self, name: str, sidecar: dict[str, Any] | None = None, *, driver: str = names.DRIVER) -> None:
        """A JuiceFSVolume, its PersistentVolume `pv-<name>`, bound to the claim of its name."""
        head = {"name": name, "namespace": "team"}
        self.create(JUICEFS_VOLUMES, {"metadata": head, "spec": {"sidecar": sidecar or {}}})
        annotations = {names.VOLUME_ANNOTATION: f"team/{name}", names.SIDECAR_ANNOTATION: json.dumps(sidecar or {})}
        spec = {"claimRef": {"namespace": "team", "name": name}, "csi": {"driver": driver}}
        self.create(PERSISTENT_VOLUMES, {"metadata": {"name": f"pv-{name}", "annotations": annotations}, "spec": spec})

    def add_pod(self, name: str, *claims: str, image: str = OLD, state: bool = True) -> None:
        volumes: list[Object] = [{"name": each, "persistentVolumeClaim": {"claimName": each}} for each in claims]
        self.runs[name] = image
        started = (START - datetime.timedelta(hours=1)).strftime(RFC_3339)
        status = {
            "name": names.SIDECAR_CONTAINER,
            "restartCount": 0,
            "started": True,
            "ready": True,
            "state": {"running": {"startedAt": started}},
        }
        self.create(
            PODS,
            {
                "metadata": {
                    "name": name,
                    "namespace": "team",
                    "labels": {names.INJECTED_LABEL: "true"},
                    "annotations": {names.INJECTED_ANNOTATION: "2"},
                },
                "spec": {
                    "initContainers": [{"name": names.SIDECAR_CONTAINER, "image": image}],
                    "containers": [{"name": "app", "image": "app:1"}],
                    "volumes": [*volumes, *([{"name": names.STATE_VOLUME, "emptyDir": {}}] if state else [])],
                },
                "status": {"phase": "Running", "initContainerStatuses": [status]},
            },
        )

    def images(self) -> dict[str, str]:
        return {pod["metadata"]["name"]: pod["spec"]["initContainers"][0]["image"] for pod in self.list(PODS, "team")}

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.list(EVENTS, "team") if event["reason"] != "Failed"]

    def stopped(self, volume: str) -> str:
        body = self.get(JUICEFS_VOLUMES, "team", volume)
        assert body is not None
        return annotation(body, names.ROLLOUT_STOPPED_ANNOTATION)


class World:
    def __init__(self, image: str = NEW) -> None:
        self.api = Kubelet()
        self.told: dict[str, Condition] = {}
        self.use(image)

    def use(self, image: str, timeout: float = 60) -> None:
        """A new operator, which wants this image."""
        self.rollout = Rollout(
            self.api,
            Settings(image, names.DRIVER, pause=5, timeout=timeout),
            Recorder(self.api, lambda: self.api.time.strftime(RFC_3339)),
            lambda told: self.told.update(told),
            interval=60,
            now=lambda: self.api.time,
        )

    async def settle(self) -> None:
        async with asyncio.timeout(20):
            while await self.rollout.step():
                pass

    def told_of(self, volume: str) -> tuple[str, str]:
        found = self.told[f"pv-{volume}"]
        assert found.type == names.SIDECARS_CURRENT
        return found.status, found.reason


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(runner, "POLL", 0.001)
    world = World()
    world.api.add_volume("data")
    for name in ("a", "b", "c"):
        world.api.add_pod(name, "data")
    return world


async def test_one_pod_after_the_other(world: World) -> None:
    await world.rollout.step()
    assert world.api.images() == {"a": NEW, "b": OLD, "c": OLD}
    mark = annotation(world.api.get(PODS, "team", "a") or {}, names.ROLLOUT_ANNOTATION)
    assert json.loads(mark)["former"] == OLD
    await world.settle()
    assert world.api.images() == dict.fromkeys("abc", NEW)
    assert world.api.history == [("a", NEW), ("b", NEW), ("c", NEW)]
    assert world.told_of("data") == ("True", "UpToDate")
    assert world.api.reasons() == [names.EVENT_SIDECAR_REPLACED] * 3
    for name in "abc":
        assert annotation(world.api.get(PODS, "team", name) or {}, names.ROLLOUT_ANNOTATION) == ""
    calls = len(world.api.calls)
    await world.settle()
    assert len(world.api.calls) == calls


async def test_a_new_sidecar_must_have_been_ready_for_the_pause(world: World) -> None:
    await world.rollout.step()
    world.api.get(PODS, "team", "a")  # it runs now
    began = world.api.time
    while world.api.images()["b"] == OLD:
        await world.rollout.step()
    assert (world.api.time - began).total_seconds() >= 5


@pytest.mark.parametrize("reason", ["pull", "ImagePullBackOff", "CrashLoopBackOff", ""])
async def test_the_first_that_does_not_come_back_stops_it(world: World, reason: str) -> None:
    world.api.add_volume("other")
    world.api.add_pod("z", "other")
    world.api.bad[BAD] = reason
    world.use(BAD)
    await world.settle()
    assert world.api.images() == dict.fromkeys("abcz", OLD)
    assert ((world.api.time - START).total_seconds() > 60) == (reason == ""), "only what may come yet is waited for"
    world.api.get(PODS, "team", "a")
    assert world.api.history == [("a", BAD), ("a", OLD)]
    assert world.api.stopped("data") == BAD
    assert world.api.stopped("other") == ""
    assert world.told_of("data") == ("False", names.ROLLOUT_STOPPED)
    assert names.ROLLOUT_STOPPED_ANNOTATION in world.told["pv-data"].message
    assert world.told_of("other") == ("False", names.ROLLOUT_STOPPED)
    assert world.api.reasons() == [names.EVENT_SIDECAR_REPLACED, names.EVENT_SIDECAR_ROLLED_BACK]
    # A new operator keeps to it.
    world.use(BAD)
    await world.settle()
    assert len(world.api.history) == 2
    # Resumed by hand when the image has become good; or by another image.
    world.api.bad.clear()
    world.api.patch(
        JUICEFS_VOLUMES, "team", "data", {"metadata": {"annotations": {names.ROLLOUT_STOPPED_ANNOTATION: None}}}
    )
    await world.settle()
    assert world.api.images() == dict.fromkeys("abcz", BAD)
    assert world.told_of("other") == ("True", "UpToDate")


async def test_another_image_goes_on_where_one_failed(world: World) -> None:
    world.api.bad[BAD] = "ImagePullBackOff"
    world.use(BAD)
    await world.settle()
    world.api.get(PODS, "team", "a")  # its former sidecar is back
    world.use(NEW)
    await world.settle()
    assert world.api.images() == dict.fromkeys("abc", NEW)
    assert world.told_of("data") == ("True", "UpToDate")


async def test_a_killed_operator_goes_on_where_it_was(world: World) -> None:
    world.api.bad[BAD] = ""
    world.use(BAD)
    await world.rollout.step()
    world.use(BAD)
    assert world.api.images() == {"a": BAD, "b": OLD, "c": OLD}
    await world.settle()
    assert world.api.history == [("a", BAD)]
    assert world.api.images() == dict.fromkeys("abc", OLD)
    # The chart moves on while a pod waits with the bad one: that pod gets the next image, not the one after it.
    world = World(BAD)
    world.api.bad[BAD] = "ErrImagePull"  # which may yet come
    world.api.add_volume("data")
    world.api.add_pod("a", "data")
    await world.rollout.step()
    world.use(NEW)
    await world.settle()
    assert world.api.images() == {"a": NEW}
    assert world.api.stopped("data") == ""


async def test_volumes_opt_out_and_choose_their_own_image(world: World) -> None:
    world.api.add_volume("own", {"image": "mine:1"})
    world.api.add_volume("manual", {"rollout": "Manual"})
    world.api.add_pod("d", "own", "data", image="mine:1")
    world.api.add_pod("e", "manual")
    world.api.add_pod("f", "data", "manual")
    await world.settle()
    assert {name: world.api.images()[name] for name in "def"} == {"d": "mine:1", "e": OLD, "f": OLD}
    assert world.told_of("own") == ("True", "UpToDate")
    assert world.told_of("manual") == ("False", "Manual")


async def test_pods_that_would_lose_something_are_left_alone(world: World) -> None:
    world.api.add_pod("old-release", "data", state=False)
    world.api.add_volume("fragile")
    world.api.patch(PERSISTENT_VOLUMES, None, "pv-fragile", {"spec": {"mountOptions": ["fuse-host=pyfuse3"]}})
    world.api.add_pod("fragile", "fragile")
    world.api.add_pod("sick", "data")
    sick = world.api.get(PODS, "team", "sick") or {}
    sick["status"]["initContainerStatuses"][0]["started"] = False
    world.api.patch(PODS, "team", "sick", {"status": sick["status"]})
    await world.settle()
    images = world.api.images()
    assert {name: images[name] for name in ("old-release", "fragile", "sick")} == {
        "old-release": OLD,
        "fragile": OLD,
        "sick": OLD,
    }
    assert images["a"] == images["c"] == NEW


async def test_other_drivers_are_no_business_of_ours() -> None:
    world = World()
    world.api.add_volume("foreign", driver="csi.example.com")
    world.api.add_pod("a", "foreign")
    (member,) = members(world.api.list(PODS), world.api.list(PERSISTENT_VOLUMES), NEW, names.DRIVER)
    assert member.volumes == ()


async def test_conflicts_are_looked_at_again_and_a_policy_stops_it(world: World) -> None:
    failures: list[Exception] = [Conflict(409, "modified"), Conflict(409, "modified")]

    def fault(verb: str, resource: Resource, name: str) -> Exception | None:
        return failures.pop() if resource is PODS and failures else None

    world.api.fail(fault)
    await world.settle()
    assert world.api.images() == dict.fromkeys("abc", NEW)
    world.api.fail(lambda verb, resource, name: ApiError(403, "policy: image") if resource is PODS else None)
    world.use("sidecar:3")
    await world.settle()
    assert world.api.stopped("data") == "sidecar:3"
    assert world.told_of("data") == ("False", names.ROLLOUT_STOPPED)


async def test_what_nobody_thought_of_is_logged_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "_QUIET", 0.001)
    pod = world.api.get(PODS, "team", "a") or {}
    good = pod["status"]["initContainerStatuses"]
    world.api.patch(
        PODS, "team", "a", {"status": {"initContainerStatuses": [{**good[0], "state": {"running": {"x": 1}}}]}}
    )
    task = asyncio.create_task(world.rollout.run())
    async with asyncio.timeout(20):
        while "tried again" not in caplog.text:  # noqa: ASYNC110 -- a line of the log is no event
            await asyncio.sleep(0.001)
        world.api.patch(PODS, "team", "a", {"status": {"initContainerStatuses": good}})
        world.rollout.seen(world.api.get(JUICEFS_VOLUMES, "team", "data") or {})
        while world.api.images()["c"] == OLD:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_only_what_matters_wakes_it(world: World) -> None:
    volume = world.api.get(JUICEFS_VOLUMES, "team", "data") or {}
    world.rollout.seen(volume)
    world.rollout._woken.clear()
    world.rollout.seen({**volume, "status": {"conditions": []}})
    assert not world.rollout._woken.is_set()
    world.rollout.seen({**volume, "spec": {"sidecar": {"image": "x"}}})
    assert world.rollout._woken.is_set()
