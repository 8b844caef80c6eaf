"""A JuiceFSVolume from nothing to bound, against the fake API server: order, idempotence, recovery, and nothing secret shown."""

import json
from collections.abc import Iterator

import pytest
from jfs_api import names
from jfs_operator.api import (
    CLAIMS,
    JUICEFS_SECRETS,
    JUICEFS_VOLUMES,
    PERSISTENT_VOLUMES,
    SECRETS,
    ApiError,
    ApiUnavailable,
    Resource,
    uid_of,
)
from jfs_operator.command import FileSystem
from jfs_operator.references import Key, Reference
from jfs_operator.steps import MountReport, Next
from operator_world import KEYS, OPERATOR_NAMESPACE, PASSWORD, SECRET_KEY, World, encoded


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


async def test_a_volume_becomes_bound_and_its_objects_are_as_agreed(world: World) -> None:
    world.add_secret()
    body = world.add_volume(
        subPath="team",
        mountOptions=["cache-size=1G"],
        capacity="5Gi",
        sidecar={"resources": {"limits": {"memory": "1Gi"}}},
    )
    outcome = await world.settle()
    assert outcome.next is Next.NOTHING
    uid = uid_of(body)
    volume, secret, claim = world.persistent_volume(), world.managed_secret(), world.claim()
    assert volume is not None
    assert secret is not None
    assert claim is not None
    assert volume["spec"]["csi"] == {
        "driver": "sidecar.juicefs.io",
        "volumeHandle": uid,
        "volumeAttributes": {"juicefs.io/volume": "apps/data"},
        "nodePublishSecretRef": {"name": f"jfsv-{uid}", "namespace": OPERATOR_NAMESPACE},
    }
    assert volume["spec"]["mountOptions"] == ["cache-size=1G", "subdir=/team"]
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert volume["spec"]["capacity"] == {"storage": "5Gi"}
    annotations = volume["metadata"]["annotations"]
    assert json.loads(annotations["juicefs.io/sidecar"]) == {"resources": {"limits": {"memory": "1Gi"}}}
    assert annotations["juicefs.io/volume"] == claim["metadata"]["annotations"]["juicefs.io/volume"] == "apps/data"
    assert claim["spec"]["volumeName"] == f"jfsv-{uid}"
    assert claim["spec"]["storageClassName"] == ""
    assert secret["data"] == encoded(KEYS)
    for type in ("Ready", "Formatted", "Bound", "SecretValid"):
        assert world.condition(type).status == "True", type
    assert world.condition("Mountable").status == "Unknown"
    status = world.volume()["status"]
    assert status["fileSystem"] == {"name": "demo", "uuid": uid}
    assert status["observedGeneration"] == 1
    assert world.jfs.calls == ["format"]
    assert world.events() == ["Bound"]


async def test_the_order_is_secret_volume_claim_and_the_claim_waits_for_the_volume(world: World) -> None:
    world.add_secret()
    world.add_volume()
    outcome = await world.reconcile()
    assert (outcome.next, world.claim()) == (Next.EVENT, None)
    assert world.condition("Bound").reason == "WaitingForPersistentVolume"
    await world.settle()
    written = [plural for verb, plural, name in world.api.calls if verb == "apply" and name != "demo"]
    assert written == ["secrets", "persistentvolumes", "persistentvolumeclaims", "persistentvolumeclaims"]


async def test_a_settled_volume_is_left_alone(world: World) -> None:
    world.add_secret()
    world.add_volume()
    await world.settle()
    before = len(world.api.calls)
    world.restart()
    for _ in range(3):
        assert (await world.reconcile()).next is Next.NOTHING
    assert world.api.calls[before:] == []
    assert world.jfs.calls == ["format"]


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("stop", range(1, 12))
async def test_a_killed_operator_is_continued(world: World, stop: int) -> None:
    """The n-th write never happens and the process is gone; the next one completes the work with one file system."""
    world.add_secret()
    body = world.add_volume()
    writes = 0

    def fault(verb: str, resource: Resource, name: str) -> Exception | None:
        nonlocal writes
        if verb == "patch" and resource in {PERSISTENT_VOLUMES, CLAIMS}:
            return None  # the binder's
        writes += 1
        return Killed() if writes == stop else None

    world.api.fail(fault)
    for _ in range(4):
        try:
            await world.reconcile()
            world.bind()
        except Killed:
            break
    world.api.fail(None)
    world.restart()
    assert (await world.settle()).next is Next.NOTHING
    assert world.jfs.file_systems == {KEYS["metaurl"]: FileSystem("demo", uid_of(body))}
    assert world.condition("Ready").status == "True"


async def test_a_missing_secret_is_a_condition_and_recovers(world: World) -> None:
    world.add_volume()
    outcome = await world.reconcile()
    assert outcome.next is Next.RETRY
    assert outcome.delay is not None
    assert world.condition("SecretValid").reason == world.condition("Ready").reason == "SecretNotFound"
    assert "'demo'" in world.condition("Ready").message
    assert (world.jfs.calls, world.persistent_volume()) == ([], None)
    dependents = world.reconciler.references.dependents(Reference("secrets", "apps", "demo"))
    assert dependents == {Key("JuiceFSVolume", "apps", "data")}
    world.add_secret(metaurl="")
    await world.reconcile()
    assert world.condition("SecretValid").reason == "KeyMissing"
    world.add_secret()
    assert (await world.settle()).next is Next.NOTHING
    assert world.events() == ["SecretNotFound", "KeyMissing", "Bound"]


async def test_a_contradiction_is_a_condition_and_touches_nothing(world: World) -> None:
    world.add_secret()
    world.add_volume(subPath="a", mountOptions=["subdir=/b"])
    assert (await world.reconcile()).next is Next.NOTHING
    assert world.condition("Ready").reason == world.condition("Stalled").reason == "InvalidSpec"
    assert "contradict" in world.condition("Stalled").message
    assert world.jfs.calls == []
    world.api.patch(JUICEFS_VOLUMES, "apps", "data", {"spec": {"mountOptions": []}})
    await world.settle()
    assert world.condition("Ready").status == "True"
    with pytest.raises(AssertionError):
        world.condition("Stalled")


async def test_a_failing_format_is_scrubbed_backed_off_and_retried_at_once_with_other_credentials(world: World) -> None:
    world.add_secret()
    world.add_volume()
    world.jfs.trouble = f"cannot reach redis://user:{PASSWORD}@redis:6379/1 with {SECRET_KEY}"
    delays = []
    for _ in range(4):
        outcome = await world.reconcile()
        assert outcome.delay is not None
        delays.append(outcome.delay)
        assert world.condition("Formatted").message == "cannot reach redis://user:***@redis:6379/1 with ***" or (
            world.condition("Formatted").message == "cannot reach *** with ***"
        )
        await world.reconcile()  # an event in between asks nothing
        world.time += outcome.delay
    assert world.jfs.calls == ["format"] * 4
    assert delays == sorted(delays)
    assert delays[-1] > 2 * delays[0]
    world.jfs.trouble = None
    world.add_secret(secret_key="another")
    await world.settle()
    assert world.condition("Ready").status == "True"


async def test_nothing_secret_is_shown_anywhere(world: World) -> None:
    world.add_secret(envs='{"META_PASSWORD": "env-secret"}', token="t0ken-secret", format_options="trash-days=0")
    world.add_volume()
    world.jfs.trouble = f"{PASSWORD} {SECRET_KEY} env-secret t0ken-secret redis://a:never-learned@b/1"
    await world.reconcile()
    world.jfs.trouble = None
    world.time += 1000
    await world.settle()
    world.reconciler.mounted(
        f"jfsv-{uid_of(world.volume())}", MountReport("JuiceFSMountFailed", f"refused {SECRET_KEY}", "1")
    )
    await world.reconcile()
    shown = world.shown()
    assert "refused ***" in shown
    for secret in (PASSWORD, SECRET_KEY, "env-secret", "t0ken-secret", "never-learned"):
        assert secret not in shown
        assert encoded({"x": secret})["x"] not in shown


async def test_a_database_that_is_formatted_already_needs_only_name_and_url(world: World) -> None:
    world.add_secret(storage="", bucket="", access_key="", secret_key="")
    world.add_volume()
    await world.reconcile()
    assert world.condition("Formatted").reason == "StorageMissing"
    world.jfs.file_systems[KEYS["metaurl"]] = FileSystem("demo", "u-1")
    world.time += 1000
    await world.settle()
    assert world.volume()["status"]["fileSystem"] == {"name": "demo", "uuid": "u-1"}
    assert "format" not in world.jfs.calls


async def test_credentials_that_lead_elsewhere_are_not_handed_to_pods(world: World) -> None:
    world.add_secret()
    world.add_volume()
    await world.settle()
    before = world.managed_secret()
    world.jfs.file_systems["redis://elsewhere/1"] = FileSystem("demo", "u-2")
    world.add_secret(metaurl="redis://elsewhere/1")
    assert (await world.settle()).next is Next.RETRY
    assert world.condition("SecretValid").reason == world.condition("Ready").reason == "DifferentFileSystem"
    assert world.condition("Formatted").status == world.condition("Bound").status == "True"
    assert world.managed_secret() == before
    world.add_secret(secret_key="rotated")
    world.time += 1000
    assert (await world.settle()).next is Next.NOTHING
    secret = world.managed_secret()
    assert secret is not None
    assert secret["data"]["secret-key"] == encoded({"x": "rotated"})["x"]


async def test_a_secret_that_vanishes_later_leaves_the_pods_alone(world: World) -> None:
    world.add_secret()
    world.add_volume()
    await world.settle()
    world.api.remove(SECRETS, "apps", "demo")
    world.restart()
    assert (await world.settle()).next is Next.RETRY
    assert world.condition("Ready").reason == "SecretNotFound"
    assert world.managed_secret() is not None
    assert world.condition("Bound").status == "True"


async def test_a_stranger_claim_is_never_taken_over(world: World) -> None:
    world.add_secret()
    world.add_volume()
    stranger = {"metadata": {"name": "data", "namespace": "apps"}, "spec": {"volumeName": ""}}
    world.api.create(CLAIMS, stranger)
    await world.settle()
    assert world.condition("Bound").reason == "ClaimExists"
    assert world.persistent_volume() is None
    world.api.remove(CLAIMS, "apps", "data")
    world.time += 1000
    await world.settle()
    assert world.condition("Ready").status == "True"


async def test_a_claim_or_volume_deleted_by_hand_comes_back(world: World) -> None:
    world.add_secret()
    world.add_volume()
    await world.settle()
    world.api.remove(CLAIMS, "apps", "data")
    world.bind()
    await world.settle()
    assert world.condition("Ready").status == "True"
    claim = world.claim()
    assert claim is not None
    world.api.remove(PERSISTENT_VOLUMES, None, f"jfsv-{uid_of(world.volume())}")
    await world.settle()
    volume = world.persistent_volume()
    assert volume is not None
    assert volume["spec"]["claimRef"]["uid"] == uid_of(claim)
    assert world.condition("Ready").status == "True"


async def test_a_changed_spec_reaches_the_volume(world: World) -> None:
    world.add_secret()
    world.add_volume(mountOptions=["prefetch=1"], capacity="1024Mi")
    await world.settle()
    world.api.patch(
        JUICEFS_VOLUMES,
        "apps",
        "data",
        {"spec": {"mountOptions": None, "capacity": "2Gi", "sidecar": {"image": "x:2"}}},
    )
    await world.settle()
    volume, claim = world.persistent_volume(), world.claim()
    assert volume is not None
    assert claim is not None
    assert volume["spec"]["mountOptions"] == []
    assert volume["spec"]["capacity"] == {"storage": "2Gi"}
    assert claim["spec"]["resources"]["requests"]["storage"] == "1024Mi"  # a bound claim cannot be resized
    assert json.loads(claim["metadata"]["annotations"]["juicefs.io/sidecar"]) == {"image": "x:2"}
    assert world.volume()["status"]["observedGeneration"] == 2


async def test_what_the_api_server_refuses_is_a_condition(world: World) -> None:
    world.add_secret()
    world.add_volume()

    def fault(verb: str, resource: Resource, name: str) -> Exception | None:
        return ApiError(403, "exceeded quota: claims") if resource is CLAIMS and verb == "apply" else None

    world.api.fail(fault)
    await world.settle()
    assert world.condition("Bound").reason == "ApiRefused"
    assert "exceeded quota" in world.condition("Ready").message
    world.api.fail(lambda verb, resource, name: ApiUnavailable("down"))
    with pytest.raises(ApiUnavailable):
        await world.reconcile()
    world.api.fail(None)
    await world.settle()
    assert world.condition("Ready").status == "True"


async def test_mount_events_become_the_condition(world: World) -> None:
    world.add_secret()
    world.add_volume()
    await world.settle()
    name = f"jfsv-{uid_of(world.volume())}"
    assert world.reconciler.owner_of(name) == Key("JuiceFSVolume", "apps", "data")
    assert world.reconciler.mounted(
        name, MountReport(names.EVENT_MOUNT_FAILED, "wrong password", "2030-01-01T00:00:01Z")
    )
    await world.reconcile()
    assert world.condition("Mountable").reason == names.EVENT_MOUNT_FAILED
    assert world.condition("Ready").status == "True"
    assert not world.reconciler.mounted(name, MountReport(names.EVENT_MOUNTED, "old news", "2029-01-01T00:00:00Z"))
    assert world.reconciler.mounted(name, MountReport(names.EVENT_MOUNTED, "mounted", "2030-01-01T00:00:02Z"))
    await world.reconcile()
    assert world.condition("Mountable").status == "True"
    for second, reason, status in ((3, names.EVENT_STALLED, "False"), (4, names.EVENT_SIDECAR_RESTARTED, "True")):
        assert world.reconciler.mounted(name, MountReport(reason, "told", f"2030-01-01T00:00:0{second}Z"))
        await world.reconcile()
        assert (world.condition("Mountable").status, world.condition("Mountable").reason) == (status, reason)
    world.restart()
    await world.reconcile()
    assert world.condition("Mountable").status == "True"  # remembered by the status


async def test_fields_and_juicefs_secrets_lead_to_the_same_credentials(world: World) -> None:
    reference = {"valueFrom": {"secretKeyRef": {"name": "raw", "key": "url"}}}
    world.api.create(
        SECRETS,
        {"metadata": {"name": "raw", "namespace": "apps"}, "data": encoded({"url": KEYS["metaurl"], "sk": SECRET_KEY})},
    )
    fields = {
        "name": {"value": "demo"},
        "metaURL": reference,
        "storage": {"value": "s3"},
        "bucket": {"value": KEYS["bucket"]},
        "accessKey": {"value": "AKIA"},
        "secretKey": {"valueFrom": {"secretKeyRef": {"name": "raw", "key": "sk"}}},
    }
    world.api.create(JUICEFS_SECRETS, {"metadata": {"name": "shared", "namespace": "apps"}, "spec": fields})
    world.add_volume("plain", secretRef=None, fileSystem=fields)
    world.add_volume("shared", secretRef={"kind": "JuiceFSSecret", "name": "shared"}, subPath="x")
    for name in ("plain", "shared"):
        assert (await world.settle(name)).next is Next.NOTHING
        secret = world.managed_secret(name)
        assert secret is not None
        assert secret["data"] == encoded(KEYS)
    first, second = world.volume("plain"), world.volume("shared")
    assert first["status"]["fileSystem"] == second["status"]["fileSystem"]
    assert world.reconciler.references.dependents(Reference("secrets", "apps", "raw")) == {
        Key("JuiceFSVolume", "apps", "plain"),
        Key("JuiceFSVolume", "apps", "shared"),
    }


async def test_a_juicefs_secret_tells_whether_it_works(world: World) -> None:
    fields = {
        "name": {"value": "demo"},
        "metaURL": {"valueFrom": {"secretKeyRef": {"name": "raw", "key": "url"}}},
        "secretKey": {"valueFrom": {"secretKeyRef": {"name": "raw", "key": "sk"}}},
    }
    world.api.create(JUICEFS_SECRETS, {"metadata": {"name": "shared", "namespace": "apps"}, "spec": fields})
    assert (await world.reconciler.secret("apps", "shared")).next is Next.RETRY
    assert world.secret_condition("Ready", "shared").reason == "SecretNotFound"
    world.api.create(
        SECRETS,
        {"metadata": {"name": "raw", "namespace": "apps"}, "data": encoded({"url": KEYS["metaurl"], "sk": SECRET_KEY})},
    )
    world.jfs.storage_ok = False
    await world.reconciler.secret("apps", "shared")
    assert world.secret_condition("MetadataReachable", "shared").status == "True"
    assert world.secret_condition("StorageReachable", "shared").message == "denied for ***"
    world.jfs.storage_ok, world.time = True, 1000
    assert (await world.reconciler.secret("apps", "shared")).next is Next.NOTHING
    assert world.secret_condition("Ready", "shared").status == "True"
    world.jfs.trouble = f"no answer from {PASSWORD}"
    await world.reconciler.secret("apps", "shared")
    assert world.secret_condition("Ready", "shared").reason == "CheckFailed"
    assert PASSWORD not in world.shown()


STATIC = {
    "metadata": {"name": "juicefs-pv"},
    "spec": {
        "capacity": {"storage": "10Pi"},
        "csi": {
            "driver": "sidecar.juicefs.io",
            "volumeHandle": "juicefs-pv",
            "fsType": "juicefs",
            "nodePublishSecretRef": {"name": "demo", "namespace": "apps"},
            "volumeAttributes": {"mountOptions": "cache-size=1G,subdir=/x"},
        },
    },
}


async def test_a_static_volume_is_formatted_once(world: World) -> None:
    world.api.create(PERSISTENT_VOLUMES, STATIC)
    assert (await world.reconciler.static("juicefs-pv")).next is Next.RETRY
    world.add_secret()
    assert (await world.reconciler.static("juicefs-pv")).next is Next.NOTHING
    await world.reconciler.static("juicefs-pv")
    assert world.jfs.calls == ["format"]
    body = world.api.get(PERSISTENT_VOLUMES, None, "juicefs-pv")
    assert body is not None
    assert body["metadata"]["annotations"] == {"juicefs.io/file-system": uid_of(body)}
    assert body["spec"] == STATIC["spec"]
    assert "finalizers" not in body["metadata"]
    assert world.events() == ["SecretNotFound", "Formatted"]


async def test_a_static_volume_of_another_driver_or_with_a_bad_option_is_not_formatted(world: World) -> None:
    world.add_secret()
    spec = {**STATIC["spec"], "mountOptions": ["nonsense"]}
    world.api.create(PERSISTENT_VOLUMES, {"metadata": {"name": "bad"}, "spec": spec})
    other = {"csi": {"driver": "csi.juicefs.com", "volumeHandle": "x"}}
    world.api.create(PERSISTENT_VOLUMES, {"metadata": {"name": "other"}, "spec": other})
    await world.reconciler.static("bad")
    assert (await world.reconciler.static("other")).next is Next.GONE
    assert world.jfs.calls == []
    assert world.events() == ["MountOptionInvalid"]
