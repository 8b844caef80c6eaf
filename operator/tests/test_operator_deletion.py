"""Deleting a JuiceFSVolume: what Retain keeps, what Delete removes and when it is refused."""

import contextlib
from collections.abc import Iterator

import pytest
from jfs_api import names
from jfs_operator.api import CLAIMS, JUICEFS_VOLUMES, PERSISTENT_VOLUMES, PODS, SECRETS, Object, Resource, metadata
from jfs_operator.steps import Next
from operator_world import KEYS, OPERATOR_NAMESPACE, PASSWORD, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.add_secret()
    yield world
    world.close()


async def finish(world: World, name: str = "data") -> None:
    """Reconcile until the operator says that nothing is left, then take the finalizer off as kopf does."""
    for _ in range(6):
        if (await world.reconcile(name)).next is Next.GONE:
            world.api.remove(JUICEFS_VOLUMES, "apps", name)
            return
    raise AssertionError(world.condition("Ready", name))


def nothing_left(world: World) -> bool:
    return not (
        world.api.list(CLAIMS) or world.api.list(PERSISTENT_VOLUMES) or world.api.list(SECRETS, OPERATOR_NAMESPACE)
    )


async def test_retain_keeps_all_data(world: World) -> None:
    world.add_volume()
    await world.settle()
    world.delete()
    await finish(world)
    assert nothing_left(world)
    assert world.jfs.removed == []
    assert list(world.jfs.file_systems) == [KEYS["metaurl"]]


async def test_delete_destroys_the_file_system_also_without_the_users_secret(world: World) -> None:
    world.add_volume(reclaimPolicy="Delete")
    await world.settle()
    world.api.remove(SECRETS, "apps", "demo")
    world.delete()
    await finish(world)
    assert nothing_left(world)
    assert (world.jfs.removed, world.jfs.file_systems) == (["/"], {})


async def test_delete_of_a_directory_removes_only_that(world: World) -> None:
    world.add_volume(reclaimPolicy="Delete", subPath="team/a")
    world.add_volume("other", subPath="team/ab")
    world.add_volume("whole")
    for name in ("data", "other", "whole"):
        await world.settle(name)
    world.delete()
    await finish(world)
    assert world.jfs.removed == ["/team/a"]


@pytest.mark.parametrize(("mine", "theirs"), [(None, None), (None, "x"), ("x", "x"), ("x", "/x/y")])
async def test_delete_is_refused_while_others_share_the_data(
    world: World, mine: str | None, theirs: str | None
) -> None:
    world.add_volume(reclaimPolicy="Delete", subPath=mine)
    world.add_volume("other", subPath=theirs)
    await world.settle()
    await world.settle("other")
    world.delete()
    assert (await world.reconcile()).next is Next.RETRY
    assert world.condition("Ready").reason == "DeletionRefused"
    assert "apps/other" in world.condition("Ready").message
    assert world.claim() is not None
    assert "DeletionRefused" in world.events()
    # The way out without losing anything:
    world.api.patch(JUICEFS_VOLUMES, "apps", "data", {"spec": {"reclaimPolicy": "Retain"}})
    await finish(world)
    assert world.jfs.removed == []


async def test_a_static_volume_on_the_same_data_counts(world: World) -> None:
    world.add_volume(reclaimPolicy="Delete")
    await world.settle()
    csi = {"driver": names.DRIVER, "volumeHandle": "s", "nodePublishSecretRef": {"name": "demo", "namespace": "apps"}}
    world.api.create(PERSISTENT_VOLUMES, {"metadata": {"name": "static"}, "spec": {"csi": csi}})
    await world.reconciler.static("static")
    world.delete()
    await world.reconcile()
    assert "PersistentVolume static" in world.condition("Ready").message
    world.api.remove(PERSISTENT_VOLUMES, None, "static")
    await finish(world)
    assert world.jfs.removed == ["/"]


async def test_delete_is_refused_while_pods_use_the_claim(world: World) -> None:
    world.add_volume(reclaimPolicy="Delete")
    await world.settle()
    world.add_pod("writer", "data")
    world.add_pod("done", "data", "Succeeded")
    world.delete()
    assert (await world.reconcile()).next is Next.RETRY
    assert world.condition("Ready").message == "pods still use the claim: writer"
    assert world.claim() is not None
    world.api.remove(PODS, "apps", "writer")
    await finish(world)
    assert world.jfs.removed == ["/"]


async def test_retain_lets_pods_end_first(world: World) -> None:
    world.add_volume()
    await world.settle()
    world.add_pod("writer", "data")
    claim = world.claim()
    assert claim is not None
    world.api.patch(CLAIMS, "apps", "data", {"metadata": {"finalizers": ["kubernetes.io/pvc-protection"]}})
    world.delete()
    assert (await world.reconcile()).next is Next.EVENT
    assert world.condition("Ready").message == "the claim waits for the pods that use it: writer"
    assert world.managed_secret() is not None
    world.api.remove(CLAIMS, "apps", "data")
    await finish(world)
    assert nothing_left(world)


async def test_two_that_are_deleted_together_do_not_wait_for_each_other_for_ever(world: World) -> None:
    names_of = ("data", "other")
    for name in names_of:
        world.add_volume(name, reclaimPolicy="Delete")
        await world.settle(name)
    for name in names_of:
        world.delete(name)
    # "data" has removed its objects and waits for the other's to go before the data does.
    assert (await world.reconcile("data")).next is Next.EVENT
    assert world.condition("Ready").reason == "WaitingForVolumes"
    assert world.jfs.removed == []
    await finish(world, "other")
    await finish(world, "data")
    assert world.jfs.removed == ["/"]
    assert nothing_left(world)


async def test_a_failing_removal_is_told_and_repeated(world: World) -> None:
    world.add_volume(reclaimPolicy="Delete")
    await world.settle()
    world.delete()
    world.jfs.trouble = f"2 sessions are active on redis://u:{PASSWORD}@r/1"
    assert (await world.reconcile()).next is Next.RETRY
    assert world.condition("Ready").reason == "DataRemovalFailed"
    assert PASSWORD not in world.shown()
    assert world.managed_secret() is not None
    world.jfs.trouble, world.time = None, 1000
    await finish(world)
    assert nothing_left(world)


async def test_killed_between_the_data_and_the_finalizer(world: World) -> None:
    world.add_volume(reclaimPolicy="Delete")
    await world.settle()
    world.delete()
    assert (await world.reconcile()).next is Next.GONE
    world.api.remove(SECRETS, "apps", "demo")
    world.restart()
    assert (await world.reconcile()).next is Next.GONE
    assert world.jfs.removed == ["/"]


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("stop", range(1, 10))
async def test_killed_at_any_write_of_a_deletion(world: World, stop: int) -> None:
    world.add_volume(reclaimPolicy="Delete")
    await world.settle()
    world.api.remove(SECRETS, "apps", "demo")
    world.delete()
    writes = 0

    def fault(verb: str, resource: Resource, name: str) -> Exception | None:
        nonlocal writes
        writes += 1
        return Killed() if writes == stop else None

    world.api.fail(fault)
    with contextlib.suppress(Killed):
        await world.reconcile()
    world.api.fail(None)
    world.restart()
    await finish(world)
    assert nothing_left(world)
    assert world.jfs.removed == ["/"]


async def test_credentials_that_lead_elsewhere_remove_nothing(world: World) -> None:
    world.add_volume(reclaimPolicy="Delete", subPath="x")
    await world.settle()
    other = world.jfs.file_systems.pop(KEYS["metaurl"])
    world.jfs.file_systems[KEYS["metaurl"]] = type(other)(other.name, "another")
    world.delete()
    assert (await world.reconcile()).next is Next.RETRY
    assert "another" in world.condition("Ready").message
    assert world.jfs.removed == []


async def test_a_volume_that_never_was_formatted_goes_without_a_word(world: World) -> None:
    body: Object = world.add_volume(reclaimPolicy="Delete", secretRef={"name": "missing"})
    await world.reconcile()
    world.delete()
    await finish(world, metadata(body)["name"])
    assert world.jfs.calls == []


async def test_a_format_whose_status_was_never_written_is_still_ours_to_remove(world: World) -> None:
    world.add_volume(reclaimPolicy="Delete")
    await world.settle()
    world.api.patch(JUICEFS_VOLUMES, "apps", "data", {"status": None})
    world.delete()
    await finish(world)
    assert world.jfs.removed == ["/"]
