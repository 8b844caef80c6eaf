"""The plan of a JuiceFSVolume that is being deleted: refuse or claim → PersistentVolume → data → managed Secret → gone.

Order matters: nothing is touched while `reclaimPolicy: Delete` has to be refused; the managed Secret outlives the
PersistentVolume, because kubelets read it and because the data is removed with its credentials when the user's Secret is gone.
Setting the policy to Retain ends a refusal at any time. Pure functions.
"""

from jfs_api import names
from jfs_api.conditions import Condition, find
from jfs_api.credentials import Credentials, CredentialsError
from jfs_api.volume import SpecError, parse_volume_spec

from jfs_operator import desired
from jfs_operator.api import CLAIMS, PERSISTENT_VOLUMES, SECRETS, Object, is_deleting, uid_of
from jfs_operator.command import FileSystem, Inspection
from jfs_operator.plan_volume import VolumeWorld, recorded_file_system
from jfs_operator.steps import Failure, Inspect, Next, Plan, Remove, RemoveData, Step


def plan_deletion(world: VolumeWorld) -> Plan:
    """The next step towards nothing."""
    spec = world.body.get("spec") or {}
    removes_data = spec.get("reclaimPolicy") == names.DELETE
    mine = world.claim if world.claim is not None and desired.owns_claim(world.body, world.claim) else None
    if removes_data and (mine is not None or world.volume is not None):
        if world.sharers:
            return _refuse(world, f"other volumes share the data: {', '.join(world.sharers)}")
        if world.users and not (mine is not None and is_deleting(mine)):
            return _refuse(world, f"pods still use the claim: {', '.join(world.users)}")
    if mine is not None:
        if not is_deleting(mine):
            return _do(world, "Deleting", "the claim is being deleted", Remove("claim", CLAIMS, mine))
        users = f": {', '.join(world.users)}" if world.users else ""
        return _wait(world, "WaitingForPods", f"the claim waits for the pods that use it{users}")
    if world.volume is not None:
        if not is_deleting(world.volume):
            step = Remove("volume", PERSISTENT_VOLUMES, world.volume)
            return _do(world, "Deleting", "the PersistentVolume is being deleted", step)
        return _wait(world, "WaitingForPersistentVolume", "waits for the end of the PersistentVolume")
    if removes_data and not _data_removed(world) and (plan := _remove_data(world, spec)):
        return plan
    if world.managed_secret is not None:
        # Written down before the Secret goes: without it nobody could look whether the data went before.
        reason, what = (_DATA_REMOVED, "the data is removed") if removes_data else ("Deleting", "the data is kept")
        step = Remove("managed_secret", SECRETS, world.managed_secret)
        return _do(world, reason, f"{what}; the managed Secret is being deleted", step)
    return _plan(world, _DELETED, "everything is gone", Next.GONE)


_DATA_REMOVED, _DELETED = "DataRemoved", "Deleted"


def _data_removed(world: VolumeWorld) -> bool:
    if world.data_removed:
        return True
    ready = find((world.body.get("status") or {}).get("conditions") or [], names.READY)
    return ready is not None and ready.reason in {_DATA_REMOVED, _DELETED}


def _remove_data(world: VolumeWorld, spec: Object) -> Plan | None:
    """None when there is nothing to remove."""
    credentials = _credentials(world)
    recorded = recorded_file_system(world.body)
    if credentials is None:
        if recorded is None:
            return None
        return _refuse(
            world, "the data cannot be removed without credentials; bring the Secret back or set reclaimPolicy: Retain"
        )
    if world.sharers:
        return _refuse(world, f"other volumes share the data: {', '.join(world.sharers)}")
    if world.leaving:
        return _wait(
            world, "WaitingForVolumes", f"other volumes on the same data are being deleted: {', '.join(world.leaving)}"
        )
    verdict = world.verdict
    if verdict is None:
        return _do(world, "RemovingData", "the file system is being looked at", Inspect(credentials))
    if isinstance(verdict, Failure):
        return _refuse(world, f"the data could not be removed: {verdict.message}", "DataRemovalFailed")
    if isinstance(verdict, Inspection) and not verdict.metadata.ok:
        return _refuse(world, f"the data could not be removed: {verdict.metadata.message}", "DataRemovalFailed")
    found = verdict if isinstance(verdict, FileSystem) else verdict.file_system
    if found is None:
        return None  # removed before: by us in a pass that was cut short, or by a volume that shared it
    uuid = recorded.uuid if recorded is not None else uid_of(world.body)
    if found.uuid != uuid:
        if recorded is None:
            return None  # never formatted by us, so nothing in it is this volume's
        return _refuse(world, f"the credentials lead to the file system {found.uuid}, this volume's is {uuid}")
    try:
        directory = parse_volume_spec(spec).directory
    except SpecError as error:
        return _refuse(world, f"the spec does not say which data to remove: {error}")
    return _do(
        world, "RemovingData", f"the data in {directory} is being removed", RemoveData(credentials, uuid, directory)
    )


def _credentials(world: VolumeWorld) -> Credentials | None:
    if world.resolution is not None and world.resolution.credentials is not None:
        return world.resolution.credentials
    if world.managed_secret is None:
        return None
    try:
        return Credentials.from_secret(world.managed_secret.get("data") or {})
    except CredentialsError:
        return None


def _refuse(world: VolumeWorld, message: str, reason: str = "DeletionRefused") -> Plan:
    return _plan(world, reason, message, Next.RETRY)


def _wait(world: VolumeWorld, reason: str, message: str) -> Plan:
    return _plan(world, reason, message, Next.EVENT)


def _do(world: VolumeWorld, reason: str, message: str, step: Step) -> Plan:
    return _plan(world, reason, message, Next.NOTHING, step)


def _plan(world: VolumeWorld, reason: str, message: str, next: Next, step: Step | None = None) -> Plan:
    old = (world.body.get("status") or {}).get("conditions") or []
    kept = tuple(
        found
        for type in (names.SECRET_VALID, names.FORMATTED, names.BOUND, names.MOUNTABLE)
        if (found := find(old, type))
    )
    ready = Condition(names.READY, "False", reason, message)
    recorded = (world.body.get("status") or {}).get("credentials", "")
    return Plan((ready, *kept), next, step, recorded_file_system(world.body), recorded)
