"""The plan of a living JuiceFSVolume: spec → credentials → format once → managed Secret → PersistentVolume → claim → bound.

`plan_volume` sees the world of one volume and names the next step with the conditions as they are before it. It never looks
back: everything it knows is in the objects themselves, so it goes on wherever a killed operator stopped. Pure functions.
"""

from dataclasses import dataclass

from jfs_api import names
from jfs_api.attachments import Attachment
from jfs_api.conditions import Condition, Status, find, summarize
from jfs_api.format_options import merge_format_options
from jfs_api.options import OptionError
from jfs_api.volume import JuiceFSVolumeSpec, SpecError, parse_volume_spec

from jfs_operator import desired
from jfs_operator.api import CLAIMS, PERSISTENT_VOLUMES, SECRETS, Object, is_deleting, metadata, uid_of
from jfs_operator.command import FileSystem, Inspection
from jfs_operator.steps import (
    Apply,
    Failure,
    Format,
    Inspect,
    MountReport,
    Next,
    Plan,
    Refusal,
    ReleaseClaim,
    Resolution,
    Slot,
    Step,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class VolumeWorld:
    """Everything a plan of one JuiceFSVolume looks at. Objects are None when they do not exist."""

    body: Object
    namespace: str  # the operator's, where managed Secrets live
    driver: str
    resolution: Resolution | None = None
    managed_secret: Object | None = None
    volume: Object | None = None
    claim: Object | None = None
    verdict: Verdict | None = None
    refusal: Refusal | None = None
    mount_report: MountReport | None = None
    sidecars: Condition | None = None  # how far a rollout is, if it has told
    sidecars_known: bool = True  # whether None means that there is nothing to tell
    attachments: tuple[tuple[str, Attachment], ...] | None = None  # with their nodes; None while nobody knows
    # Only of interest to a deletion:
    users: tuple[str, ...] = ()
    sharers: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    data_removed: bool = False


def recorded_file_system(body: Object) -> FileSystem | None:
    """The file system that the status remembers."""
    found = (body.get("status") or {}).get("fileSystem") or {}
    return FileSystem(found.get("name", ""), found["uuid"]) if found.get("uuid") else None


def plan_volume(world: VolumeWorld) -> Plan:
    """The next step towards a bound volume."""
    try:
        spec = parse_volume_spec(world.body.get("spec") or {})
        return _Planner(world, spec).plan()
    except SpecError as error:
        return _stalled(world, str(error))


def _stalled(world: VolumeWorld, message: str) -> Plan:
    """Nothing is touched: what was made under an earlier spec goes on serving its pods."""
    kept = tuple(
        found
        for type in (names.SECRET_VALID, names.FORMATTED, names.BOUND, names.MOUNTABLE, names.SIDECARS_CURRENT)
        if (found := find(_old_conditions(world), type))
    )
    ready = Condition(names.READY, "False", "InvalidSpec", message)
    stalled = Condition(names.STALLED, "True", "InvalidSpec", message)
    recorded = (world.body.get("status") or {}).get("credentials", "")
    return Plan((ready, *kept, stalled), Next.NOTHING, None, recorded_file_system(world.body), recorded)


def _old_conditions(world: VolumeWorld) -> list[Object]:
    return (world.body.get("status") or {}).get("conditions") or []


class _Planner:
    """One pass over one world; the conditions are filled in as far as it gets."""

    def __init__(self, world: VolumeWorld, spec: JuiceFSVolumeSpec) -> None:
        self._world = world
        self._spec = spec
        self._recorded = recorded_file_system(world.body)
        self._file_system = self._recorded
        self._fingerprint = (world.body.get("status") or {}).get("credentials", "")
        self._secret_valid = Condition(names.SECRET_VALID, "Unknown", "NotChecked", "the credentials were not read yet")
        self._formatted = Condition(names.FORMATTED, "Unknown", "WaitingForCredentials", "waits for valid credentials")
        self._bound = Condition(names.BOUND, "False", "WaitingForFormat", "waits for the file system")

    def plan(self) -> Plan:
        return self._check_credentials() or self._find_file_system() or self._make_objects()

    def _check_credentials(self) -> Plan | None:
        resolution = self._world.resolution
        if resolution is None:
            return self._wait(Next.RETRY)
        good = resolution.credentials is not None
        self._secret_valid = Condition(
            names.SECRET_VALID, "True" if good else "False", resolution.reason, resolution.message
        )
        if good or self._recorded is not None:
            return None
        return self._wait(Next.RETRY)

    def _find_file_system(self) -> Plan | None:
        """Format or verify with `jfs`, unless these very credentials were seen to work."""
        resolution = self._world.resolution
        if resolution is None or resolution.credentials is None:
            # Formatted before, and the credentials have gone since: pods go on with the managed Secret.
            self._set_formatted()
            return None
        if self._recorded is not None and resolution.fingerprint == self._fingerprint:
            self._set_formatted()
            return None
        verdict = self._world.verdict
        if isinstance(verdict, Failure):
            return self._failed("FormatFailed" if self._recorded is None else "AccessFailed", verdict.message)
        if isinstance(verdict, FileSystem):
            return self._accept(verdict, resolution)
        if isinstance(verdict, Inspection):
            return self._judge(verdict, resolution)
        self._formatted = Condition(names.FORMATTED, "Unknown", "Formatting", "the file system is being looked at")
        credentials = resolution.credentials
        if self._recorded is None and credentials.storage:
            try:
                options = merge_format_options(credentials.format_options, self._spec.format_options)
            except OptionError as error:
                raise SpecError(str(error)) from None
            merged = credentials.model_copy(update={"format_options": options})
            return self._do(Format(merged, uid_of(self._world.body)))
        return self._do(Inspect(credentials))

    def _judge(self, found: Inspection, resolution: Resolution) -> Plan | None:
        if not found.metadata.ok:
            return self._failed("MetadataUnreachable", found.metadata.message)
        if found.file_system is None and self._recorded is None:
            message = "the database holds no file system yet, and without the key storage none can be formatted"
            return self._failed("StorageMissing", message)
        if found.file_system is None:
            return self._failed("FileSystemGone", "the database holds no file system any more")
        return self._accept(found.file_system, resolution)

    def _accept(self, found: FileSystem, resolution: Resolution) -> Plan | None:
        expected = resolution.credentials.name if resolution.credentials else found.name
        if found.name != expected:
            message = f"the database holds the file system {found.name!r}, the credentials name {expected!r}"
            return self._failed("DifferentFileSystem", message)
        if self._recorded is not None and found.uuid != self._recorded.uuid:
            message = f"the credentials lead to the file system {found.uuid}, but this volume was made on {self._recorded.uuid}"
            return self._failed("DifferentFileSystem", message)
        self._file_system, self._fingerprint = found, resolution.fingerprint
        self._set_formatted()
        return None

    def _set_formatted(self) -> None:
        assert self._file_system is not None
        name, uuid = self._file_system.name, self._file_system.uuid
        self._formatted = Condition(names.FORMATTED, "True", "Formatted", f"the file system {name} has the UUID {uuid}")

    def _failed(self, reason: str, message: str) -> Plan | None:
        """Before the format that is a volume without file system; afterwards only the new credentials are bad, the old go on."""
        if self._recorded is None:
            self._formatted = Condition(names.FORMATTED, "False", reason, message)
            return self._wait(Next.RETRY)
        self._secret_valid = Condition(names.SECRET_VALID, "False", reason, message)
        self._set_formatted()
        return None

    def _make_objects(self) -> Plan:
        world, spec = self._world, self._spec
        if secret := self._secret_step():
            return self._apply(secret)
        if world.managed_secret is None:
            message = "the managed Secret is gone and the credentials cannot be read"
            return self._not_bound("WaitingForCredentials", message, Next.RETRY)
        mine = world.claim if world.claim is not None and desired.owns_claim(world.body, world.claim) else None
        if world.claim is not None and mine is None:
            # Before the PersistentVolume is made: it would offer itself to the stranger, whose name it carries.
            name = metadata(world.claim)["name"]
            message = (
                f"a PersistentVolumeClaim {name!r} that is not of this JuiceFSVolume exists already; rename one of them"
            )
            return self._not_bound("ClaimExists", message, Next.RETRY)
        if step := self._volume_step(mine):
            return self._apply(step) if isinstance(step, Apply) else self._do(step)
        volume = world.volume
        assert volume is not None
        if is_deleting(volume):
            return self._not_bound(
                "PersistentVolumeDeleted", "waits for the end of the deleted PersistentVolume", Next.EVENT
            )
        phase = (volume.get("status") or {}).get("phase", "Pending")
        if mine is None and phase != "Available":
            return self._not_bound(
                "WaitingForPersistentVolume", f"the PersistentVolume is {phase}, not yet Available", Next.EVENT
            )
        if mine is not None and is_deleting(mine):
            return self._not_bound("ClaimDeleted", "the claim was deleted and waits for its pods to end", Next.EVENT)
        assert self._file_system is not None
        wanted = desired.claim(world.body, spec, mine, uuid=self._file_system.uuid if phase == "Bound" else None)
        if mine is None or not desired.covers(mine, wanted):
            return self._apply(Apply("claim", CLAIMS, wanted))
        phase = (mine.get("status") or {}).get("phase", "Pending")
        if phase == "Bound":
            self._bound = Condition(names.BOUND, "True", "Bound", f"the claim {metadata(mine)['name']} is bound")
            return self._wait(Next.NOTHING)
        if phase == "Lost":
            return self._not_bound("ClaimLost", "the claim lost its PersistentVolume", Next.RETRY)
        return self._not_bound("WaitingForClaim", f"the claim is {phase}", Next.EVENT)

    def _secret_step(self) -> Apply | None:
        """Only credentials that were seen to lead to this volume's file system reach the managed Secret."""
        resolution, world = self._world.resolution, self._world
        if resolution is None or resolution.credentials is None or resolution.fingerprint != self._fingerprint:
            return None
        wanted = desired.managed_secret(world.body, resolution.credentials, world.namespace)
        if world.managed_secret is not None and desired.covers(world.managed_secret, wanted):
            return None
        return Apply("managed_secret", SECRETS, wanted)

    def _volume_step(self, claim: Object | None) -> Step | None:
        world = self._world
        assert self._file_system is not None
        wanted = desired.persistent_volume(
            world.body,
            self._spec,
            uuid=self._file_system.uuid,
            driver=world.driver,
            namespace=world.namespace,
            claim=claim,
        )
        if world.volume is None:
            return Apply("volume", PERSISTENT_VOLUMES, wanted)
        if is_deleting(world.volume):
            return None
        bound_to = world.volume["spec"].get("claimRef", {}).get("uid")
        if world.claim is None and bound_to:
            return ReleaseClaim(metadata(world.volume)["name"])
        if claim is not None and bound_to in {None, "", uid_of(claim)}:
            # The binder writes the UID; naming it here would only race with it.
            wanted["spec"]["claimRef"].pop("uid", None)
            if bound_to:
                wanted["spec"]["claimRef"]["uid"] = bound_to
        return None if desired.covers(world.volume, wanted) else Apply("volume", PERSISTENT_VOLUMES, wanted)

    def _apply(self, step: Apply) -> Plan:
        refusal = self._world.refusal
        if refusal is not None and refusal.slot == step.slot:
            return self._not_bound(
                "ApiRefused", f"the API server refused the {step.resource.kind}: {refusal.message}", Next.RETRY
            )
        self._bound = Condition(names.BOUND, "False", _WAITING[step.slot], f"the {step.resource.kind} is being written")
        return self._do(step)

    def _not_bound(self, reason: str, message: str, next: Next) -> Plan:
        self._bound = Condition(names.BOUND, "False", reason, message)
        return self._wait(next)

    def _do(self, step: Step) -> Plan:
        return self._result(Next.NOTHING, step)

    def _wait(self, next: Next) -> Plan:
        if next is Next.NOTHING and self._secret_valid.status != "True":
            next = Next.RETRY
        return self._result(next, None)

    def _result(self, next: Next, step: Step | None) -> Plan:
        parts = (self._secret_valid, self._formatted, self._bound)
        ready = summarize(names.READY, parts, reason="Bound", message="pods can use the claim")
        told = (ready, *parts, self._mountable(), *self._sidecars())
        return Plan(told, next, step, self._file_system, self._fingerprint)

    def _sidecars(self) -> tuple[Condition, ...]:
        """What the rollout says; before it has looked for the first time, what it said last."""
        found = self._world.sidecars
        if found is None and not self._world.sidecars_known:
            found = find(_old_conditions(self._world), names.SIDECARS_CURRENT)
        return () if found is None else (found,)

    def _mountable(self) -> Condition:
        report = self._world.mount_report
        if report is None:
            former = find(_old_conditions(self._world), names.MOUNTABLE)
            return former or Condition(names.MOUNTABLE, "Unknown", "NotMountedYet", "no pod has mounted the volume yet")
        status: Status = "True" if report.reason in names.EVENTS_WORKING else "False"
        return Condition(names.MOUNTABLE, status, report.reason, report.message)


_WAITING: dict[Slot, str] = {
    "managed_secret": "WaitingForSecret",
    "volume": "WaitingForPersistentVolume",
    "claim": "WaitingForClaim",
}
