"""The conditions of a JuiceFSSecret: do its credentials work, without ever showing them. Pure functions."""

from jfs_api import names
from jfs_api.conditions import Condition, Status, summarize

from jfs_operator.command import Check, Inspection
from jfs_operator.steps import Failure, Inspect, Next, Plan, Resolution, Verdict


def plan_secret(resolution: Resolution, verdict: Verdict | None) -> Plan:
    """Ask `jfs status`, then say what it answered."""
    if resolution.credentials is None:
        return _plan(
            Condition(names.METADATA_REACHABLE, "Unknown", resolution.reason, resolution.message),
            Condition(names.STORAGE_REACHABLE, "Unknown", resolution.reason, resolution.message),
            Next.RETRY,
        )
    if verdict is None:
        step = Inspect(resolution.credentials, storage=True)
        unknown = [Condition(type, "Unknown", "Checking", "is being asked") for type in _TYPES]
        return Plan((Condition(names.READY, "False", "Checking", "is being asked"), *unknown), Next.NOTHING, step)
    if isinstance(verdict, Failure):
        return _plan(
            Condition(names.METADATA_REACHABLE, "Unknown", "CheckFailed", verdict.message),
            Condition(names.STORAGE_REACHABLE, "Unknown", "CheckFailed", verdict.message),
            Next.RETRY,
        )
    assert isinstance(verdict, Inspection)
    metadata = _condition(names.METADATA_REACHABLE, verdict.metadata, "the metadata engine answers")
    found, name = verdict.file_system, resolution.credentials.name
    if found is not None and found.name != name:
        message = f"the database holds the file system {found.name!r}, the credentials name {name!r}"
        metadata = Condition(names.METADATA_REACHABLE, "False", "DifferentFileSystem", message)
    storage = _condition(names.STORAGE_REACHABLE, verdict.storage, "the object storage answers")
    good = metadata.status == storage.status == "True"
    plan = _plan(metadata, storage, Next.NOTHING if good else Next.RETRY)
    return Plan(plan.conditions, plan.next, None, found)


_TYPES = (names.METADATA_REACHABLE, names.STORAGE_REACHABLE)


def _condition(type: str, check: Check, good: str) -> Condition:
    status: Status = "Unknown" if check.ok is None else "True" if check.ok else "False"
    reason = {"True": "Reachable", "False": "Unreachable", "Unknown": "NotChecked"}[status]
    return Condition(type, status, reason, check.message or (good if check.ok else "no reason was given"))


def _plan(metadata: Condition, storage: Condition, next: Next) -> Plan:
    ready = summarize(names.READY, (metadata, storage), reason="Reachable", message="the credentials work")
    return Plan((ready, metadata, storage), next)
