"""What kopf's events lead to: the right object is reconciled, errors become delays, nothing else is touched."""

from collections.abc import Iterator
from typing import Any

import kopf
import pytest
from jfs_api import names
from jfs_operator.api import JUICEFS_SECRETS, JUICEFS_VOLUMES, ApiUnavailable, Object, uid_of
from jfs_operator.handlers import Handlers
from jfs_operator.references import Key
from operator_world import World

VOLUME = Key("JuiceFSVolume", "apps", "data")


class Recording:
    """Stands in for the queue."""

    def __init__(self) -> None:
        self.added: list[Key] = []
        self.delayed: list[Key] = []
        self.slept: list[Key] = []
        self.wake: Any = None

    def add(self, key: Key) -> None:
        self.added.append(key)

    def later(self, key: Key, delay: float) -> None:
        self.delayed.append(key)

    def forget(self, key: Key) -> None:
        pass

    async def something_happens(self, key: Key, seconds: float) -> None:
        self.slept.append(key)
        if self.wake:
            self.wake()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def queue() -> Recording:
    return Recording()


@pytest.fixture
def handlers(world: World, queue: Recording) -> Handlers:
    handlers = Handlers(world.reconciler, resync=60)
    handlers.queue = queue  # type: ignore[assignment]
    return handlers


def body(raw: Object) -> kopf.Body:
    found: Any = raw
    return kopf.Body(found)


async def test_the_timer_leaves_what_fails_to_the_queue(world: World, handlers: Handlers, queue: Recording) -> None:
    world.add_volume()
    await handlers.resync(namespace="apps", name="data")
    assert queue.delayed == [VOLUME]
    world.add_secret()
    await world.settle()
    await handlers.resync(namespace="apps", name="data")
    assert queue.delayed == [VOLUME]
    assert world.condition("Ready").status == "True"


async def test_create_reconciles_and_errors_become_delays(world: World, handlers: Handlers, queue: Recording) -> None:
    world.add_volume()
    with pytest.raises(kopf.TemporaryError, match="does not exist") as caught:
        await handlers.change(namespace="apps", name="data")
    assert caught.value.delay is not None
    assert 1 <= caught.value.delay <= 1.25
    world.add_secret()
    await handlers.change(namespace="apps", name="data")
    assert queue.delayed == [VOLUME]  # waits for the binder's event, and looks by itself if none comes
    world.bind()
    world.api.fail(lambda verb, resource, name: ApiUnavailable("the API server is down"))
    with pytest.raises(kopf.TemporaryError, match="the API server is down"):
        await handlers.change(namespace="apps", name="data")


async def test_delete_goes_on_at_each_event_until_nothing_is_left(
    world: World, handlers: Handlers, queue: Recording
) -> None:
    world.add_secret()
    world.add_volume()
    await world.settle()
    world.protect_claim()
    world.delete()
    queue.wake = world.release_claim
    await handlers.delete(namespace="apps", name="data")
    assert queue.slept == [VOLUME]
    assert world.persistent_volume() is None


async def test_a_refused_deletion_is_looked_at_again_soon(world: World, handlers: Handlers) -> None:
    world.add_secret()
    world.add_volume(reclaimPolicy="Delete")
    await world.settle()
    world.add_pod("writer", "data")
    world.delete()
    for _ in range(8):
        world.time += 1000
        with pytest.raises(kopf.TemporaryError, match="pods still use the claim") as caught:
            await handlers.delete(namespace="apps", name="data")
        assert caught.value.delay is not None
        assert caught.value.delay <= 15


async def test_a_changed_secret_brings_its_dependents(world: World, handlers: Handlers, queue: Recording) -> None:
    world.add_volume()
    await world.reconcile()
    secret = {"metadata": {"name": "demo", "namespace": "apps"}}
    await handlers.credentials_event(body=body(secret))
    assert queue.added == [VOLUME]
    await handlers.credentials_event(body=body({"metadata": {"name": "other", "namespace": "apps"}}))
    assert queue.added == [VOLUME]


async def test_our_own_objects_bring_their_owner_and_static_volumes_themselves(
    world: World, handlers: Handlers, queue: Recording
) -> None:
    owned = {"metadata": {"name": "x", "annotations": {names.VOLUME_ANNOTATION: "apps/data"}}, "spec": {"csi": {}}}
    await handlers.claim_event(body=body(owned))
    await handlers.persistent_volume_event(event={"type": "MODIFIED"}, body=body(owned))
    static = {"metadata": {"name": "static"}, "spec": {"csi": {"driver": names.DRIVER}}}
    await handlers.persistent_volume_event(event={"type": "MODIFIED"}, body=body(static))
    foreign = {"metadata": {"name": "nfs"}, "spec": {"nfs": {}}}
    await handlers.persistent_volume_event(event={"type": "MODIFIED"}, body=body(foreign))
    assert queue.added == [VOLUME, VOLUME, Key("PersistentVolume", "", "static")]


async def test_a_juicefs_secret_is_checked_when_its_spec_changed_and_not_for_our_own_writes(
    world: World, handlers: Handlers, queue: Recording
) -> None:
    key = Key("JuiceFSSecret", "apps", "shared")
    spec = {"name": {"value": "demo"}, "metaURL": {"value": "redis://r/1"}}
    world.api.create(JUICEFS_SECRETS, {"metadata": {"name": "shared", "namespace": "apps"}, "spec": spec})

    async def event(kind: str | None) -> None:
        found = world.api.get(JUICEFS_SECRETS, "apps", "shared")
        assert found is not None
        await handlers.secret_event(event={"type": kind}, body=body(found))

    await event(None)
    assert queue.added == [key]
    outcome = await handlers.reconcile(key)
    assert outcome.delay is not None
    assert 300 <= outcome.delay <= 375  # credentials that work are checked again
    await event("MODIFIED")
    assert queue.added == [key]
    world.api.patch(JUICEFS_SECRETS, "apps", "shared", {"spec": {"bucket": {"value": "http://s3/b"}}})
    await event("MODIFIED")
    assert queue.added == [key, key]
    await event("DELETED")
    assert not world.reconciler.references.knows(key)


async def test_mount_events_bring_the_owner_once(world: World, handlers: Handlers, queue: Recording) -> None:
    world.add_secret()
    volume = world.add_volume()
    await world.settle()
    event = {
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "PersistentVolume", "name": f"jfsv-{uid_of(volume)}"},
        "reason": names.EVENT_MOUNTED,
        "message": "mounted",
        "lastTimestamp": "2030-01-01T00:00:00Z",
    }
    await handlers.mount_event(event={"type": "DELETED"}, body=body(event))
    await handlers.mount_event(event={"type": "ADDED"}, body=body({**event, "reason": "Formatted"}))
    assert queue.added == []
    await handlers.mount_event(event={"type": "ADDED"}, body=body(event))
    await handlers.mount_event(event={"type": "MODIFIED"}, body=body(event))
    assert queue.added == [VOLUME]


async def test_volume_events_feed_the_audit(world: World, handlers: Handlers) -> None:
    volume = world.add_volume()
    await handlers.volume_event(event={"type": "ADDED"}, body=body(volume))
    audit = handlers.audits[JUICEFS_VOLUMES]
    assert audit.audit([volume])
    assert audit.audit([volume])
    await handlers.volume_event(event={"type": "DELETED"}, body=body(volume))
    assert audit.audit([])


def test_everything_is_registered_and_only_volumes_get_a_finalizer(handlers: Handlers) -> None:
    registry = kopf.OperatorRegistry()
    handlers.register(registry)
    changing = [handler for handler in registry._changing.get_all_handlers() if handler.requires_finalizer]
    kinds = {str(handler.selector) for handler in [*changing, *registry._spawning.get_all_handlers()]}
    assert len(kinds) == 1
    assert names.VOLUME_PLURAL in kinds.pop()
    assert len(registry._watching.get_all_handlers()) == 7
