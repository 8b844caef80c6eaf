"""From JuiceFSNodes to volumes' statuses."""

from collections.abc import Iterator
from typing import Any

import pytest
from jfs_api.attachments import FORGET_SECONDS
from jfs_operator.api import JUICEFS_VOLUMES, Object, uid_of
from jfs_operator.attachments import Attachments
from operator_world import PASSWORD, World


class Clock:
    now = 0.0


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def entry(volume: str, pod: str, state: str = "Attached", **more: Any) -> Object:
    fields = {"volume": volume, "namespace": "apps", "pod": pod, "podUID": f"uid-{pod}", "mode": "restricted"}
    return {**fields, "state": state, **more}


def node(name: str, *entries: Object, version: str = "1") -> Object:
    return {"metadata": {"name": name, "resourceVersion": version}, "attachments": list(entries)}


def test_changes_concern_the_volumes_that_changed() -> None:
    found = Attachments(lambda: 0.0)
    assert found.of("pv-1") is None
    assert found.seen(node("a", entry("pv-1", "x"), entry("pv-2", "y"))) == {"pv-1", "pv-2"}
    assert found.of("pv-1") is None  # the other nodes are yet to be seen
    assert found.listed([node("a", entry("pv-1", "x"), entry("pv-2", "y")), node("b")]) == {"pv-1", "pv-2"}
    assert [(name, each.pod) for name, each in found.of("pv-1") or ()] == [("a", "x")]
    assert found.seen(node("a", entry("pv-1", "x", "Waiting"), entry("pv-2", "y"))) == {"pv-1"}
    assert found.seen(node("a", entry("pv-1", "x", "Waiting"), "nonsense")) == {"pv-2"}  # type: ignore[arg-type]
    assert found.seen(node("a"), deleted=True) == {"pv-1"}
    assert found.of("pv-1") == ()
    assert found.listed([]) == set()


def test_a_node_that_nobody_renews_is_forgotten() -> None:
    clock = Clock()
    found = Attachments(lambda: clock.now)
    found.listed([node("a", version="1"), node("b", version="1")])
    clock.now = FORGET_SECONDS / 2
    found.seen(node("b", version="2"))
    found.listed([node("a", version="1"), node("b", version="2")])
    clock.now = FORGET_SECONDS + 1
    assert [body["metadata"]["name"] for body in found.forgotten()] == ["a"]
    found.seen(node("a"), deleted=True)
    assert found.forgotten() == []


async def test_the_status_follows_and_keeps_no_secret(world: World) -> None:
    world.add_secret()
    world.add_volume()
    await world.settle()
    assert "attachments" not in world.volume()["status"]
    name = f"jfsv-{uid_of(world.volume())}"
    bad = entry(name, "bad", "Waiting", message=f"no answer from redis://user:{PASSWORD}@redis:6379/1")
    world.reconciler.attachments.listed([node("a", entry(name, "app", lastStallMs=0), bad), node("b", entry("o", "x"))])
    await world.reconcile()
    status = world.volume()["status"]
    assert status["pods"] == 2
    assert [(each["pod"], each["node"], each["state"]) for each in status["attachments"]] == [
        ("bad", "a", "Waiting"),
        ("app", "a", "Attached"),
    ]
    assert PASSWORD not in str(status)
    writes = world.api.calls.count(("apply status", JUICEFS_VOLUMES.plural, "data"))
    await world.reconcile()
    assert world.api.calls.count(("apply status", JUICEFS_VOLUMES.plural, "data")) == writes
    # A new process knows nothing yet and takes nothing away.
    world.restart()
    await world.reconcile()
    assert world.volume()["status"]["pods"] == 2
    world.reconciler.attachments.listed([])
    await world.reconcile()
    assert "attachments" not in world.volume()["status"]
    assert "pods" not in world.volume()["status"]
