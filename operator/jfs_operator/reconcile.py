"""The one reconcile of each kind of object: observe the world, plan, do one step, plan again, write down what is so.

Create, update, resume, timer, deletion and every event of something referred to call the same three methods. They are
level-triggered: the cause of a call is never looked at, and a call that was cut off at any point is completed by the next.
Concurrency: one reconcile per object at a time (a lock per key), a bounded number in all; API calls block in threads.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from jfs_api import names
from jfs_api.conditions import Condition
from jfs_api.volume import SpecError, parse_volume_spec

from jfs_operator import desired
from jfs_operator.api import (
    CLAIMS,
    JUICEFS_SECRETS,
    JUICEFS_VOLUMES,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    Api,
    ApiError,
    ApiUnavailable,
    Conflict,
    Object,
    Resource,
    annotation,
    is_deleting,
    metadata,
    uid_of,
)
from jfs_operator.attachments import Attachments
from jfs_operator.backoff import Backoff
from jfs_operator.command import Jfs, JfsError
from jfs_operator.plan_deletion import plan_deletion
from jfs_operator.plan_secret import plan_secret
from jfs_operator.plan_static import plan_static
from jfs_operator.plan_volume import VolumeWorld, plan_volume, recorded_file_system
from jfs_operator.references import Key, References
from jfs_operator.report import Reporter
from jfs_operator.resolve import Resolver
from jfs_operator.scrub import Scrubber
from jfs_operator.sharing import find_sharers, pods_using
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
    Remove,
    RemoveData,
    Resolution,
    Verdict,
)

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

# A volume takes six steps from nothing to bound; more means that two writers fight over an object.
_MOST_STEPS: Final = 12
_MOST_AT_ONCE: Final = 8
EVENT_DELAY: Final = 10.0  # seconds until a pass that waits for an event looks by itself


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass ended with, and in how many seconds to look again (None: no need)."""

    next: Next
    message: str
    delay: float | None = None


class Reconciler:
    """Holds what a pass needs; what it learns about the world stays in the API server (and, for back-off, in memory)."""

    def __init__(
        self,
        api: Api,
        jfs: Jfs,
        *,
        namespace: str,
        driver: str,
        clock: Callable[[], float],
        reporter: Reporter,
        scrubber: Scrubber,
    ) -> None:
        self._api = api
        self._jfs = jfs
        self._namespace = namespace
        self._driver = driver
        self._reporter = reporter
        self._scrubber = scrubber
        self._backoff = Backoff(clock)
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="api")
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._mounts: dict[str, MountReport] = {}
        self._owners: dict[str, Key] = {}
        self.references = References()
        self.attachments = Attachments(clock)
        # What a rollout says, by PersistentVolume; None while it has not said anything yet. Without one there is nothing to say.
        self.sidecars: dict[str, Condition] | None = {}

    def mounted(self, persistent_volume: str, report: MountReport) -> bool:
        """Remember what a node service said; False when that is no news."""
        known = self._mounts.get(persistent_volume)
        if known is not None and known.time > report.time:
            return False
        cleaned = replace(report, message=self._scrubber.clean(report.message))
        self._mounts[persistent_volume] = cleaned
        return known != cleaned

    def owner_of(self, persistent_volume: str) -> Key | None:
        """The JuiceFSVolume of a PersistentVolume, once it was reconciled."""
        return self._owners.get(persistent_volume)

    def forget(self, key: Key) -> None:
        """The object is gone."""
        for name in [name for name, owner in self._owners.items() if owner == key]:
            del self._owners[name]
            self._mounts.pop(name, None)
        self.references.forget(key)
        self._scrubber.forget(key)
        self._backoff.succeeded(key)
        self._backoff.succeeded((key, "deletion"))

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def volume(self, namespace: str, name: str) -> Outcome:
        """Bring a JuiceFSVolume closer to its spec, or to its end. Raises ApiUnavailable and ApiError."""
        key = Key(JUICEFS_VOLUMES.kind, namespace, name)
        async with self._turn(key):
            body = await self._read(JUICEFS_VOLUMES, namespace, name)
            if body is None:
                self.forget(key)
                return Outcome(Next.GONE, "there is no such JuiceFSVolume")
            self._owners[desired.object_name(body)] = key
            deleting = is_deleting(body)
            world = await self._observe(key, body, deleting)
            held_key: object = (key, "deletion") if deleting else key
            fingerprint = world.resolution.fingerprint if world.resolution else ""
            world = replace(world, verdict=self._backoff.held(held_key, fingerprint))
            for _ in range(_MOST_STEPS):
                plan = plan_deletion(world) if deleting else plan_volume(world)
                if plan.step is None:
                    break
                if _write_first(plan, body):
                    world = replace(world, body=await self._report_volume(world, plan))
                world = await self._act(plan, world)
            else:
                raise ApiUnavailable("the objects of the volume changed again and again while they were written")
            await self._report_volume(world, plan)
            return self._outcome(held_key, fingerprint, plan, world.verdict)

    async def secret(self, namespace: str, name: str) -> Outcome:
        """See whether the credentials of a JuiceFSSecret work. Raises ApiUnavailable and ApiError."""
        key = Key(JUICEFS_SECRETS.kind, namespace, name)
        async with self._turn(key):
            body = await self._read(JUICEFS_SECRETS, namespace, name)
            if body is None or is_deleting(body):
                self.forget(key)
                return Outcome(Next.GONE, "there is no such JuiceFSSecret")
            resolver = Resolver(self._read, namespace)
            resolution = await resolver.juicefs_secret(body)
            self._learn(key, resolver, resolution)
            verdict = self._backoff.held(key, resolution.fingerprint)
            plan = plan_secret(resolution, verdict)
            if isinstance(plan.step, Inspect):
                verdict = await self._ask(plan.step)
                plan = plan_secret(resolution, verdict)
            await self._report(body, plan, JUICEFS_SECRETS)
            return self._outcome(key, resolution.fingerprint, plan, verdict)

    async def static(self, name: str) -> Outcome:
        """Format the volume of a hand-written PersistentVolume once. Raises ApiUnavailable and ApiError."""
        key = Key(PERSISTENT_VOLUMES.kind, "", name)
        async with self._turn(key):
            body = await self._read(PERSISTENT_VOLUMES, None, name)
            if body is None or is_deleting(body) or not self.is_static(body):
                self.forget(key)
                return Outcome(Next.GONE, "there is no such static PersistentVolume")
            reference = body["spec"]["csi"].get("nodePublishSecretRef") or {}
            resolver = Resolver(self._read, reference.get("namespace") or "default")
            if reference.get("name"):
                resolution = await resolver.secret(reference["name"])
            else:
                resolution = Resolution(
                    None, "", "SecretRefMissing", "the PersistentVolume has no nodePublishSecretRef"
                )
            self._learn(key, resolver, resolution)
            if annotation(body, names.FILE_SYSTEM_ANNOTATION) and resolution.credentials is not None:
                return Outcome(Next.NOTHING, "formatted before")
            verdict = self._backoff.held(key, resolution.fingerprint)
            plan = plan_static(body, resolution, verdict)
            if isinstance(plan.step, Format | Inspect):
                verdict = await self._ask(plan.step)
                plan = plan_static(body, resolution, verdict)
            if plan.file_system is not None:
                mark = {names.FILE_SYSTEM_ANNOTATION: plan.file_system.uuid}
                await self._call(self._api.patch, PERSISTENT_VOLUMES, None, name, {"metadata": {"annotations": mark}})
            await self._call(self._reporter.announce, body, plan)
            return self._outcome(key, resolution.fingerprint, plan, verdict)

    def is_static(self, persistent_volume: Object) -> bool:
        """Whether it is of our driver and not made by us."""
        csi = persistent_volume.get("spec", {}).get("csi") or {}
        return csi.get("driver") == self._driver and not annotation(persistent_volume, names.VOLUME_ANNOTATION)

    async def _observe(self, key: Key, body: Object, deleting: bool) -> VolumeWorld:
        name, namespace = desired.object_name(body), key.namespace
        world = VolumeWorld(
            body,
            self._namespace,
            self._driver,
            managed_secret=await self._read(SECRETS, self._namespace, name),
            volume=await self._read(PERSISTENT_VOLUMES, None, name),
            claim=await self._read(CLAIMS, namespace, key.name),
            mount_report=self._mounts.get(name),
            attachments=self.attachments.of(name),
            sidecars=(self.sidecars or {}).get(name),
            sidecars_known=self.sidecars is not None,
        )
        resolver = Resolver(self._read, namespace)
        try:
            spec = parse_volume_spec(body.get("spec") or {})
        except SpecError:
            spec = None
        resolution = await resolver.volume(body, spec) if spec is not None else None
        self._learn(key, resolver, resolution)
        world = replace(world, resolution=resolution)
        if not deleting:
            return world
        world = replace(world, users=pods_using(key.name, await self._call(self._api.list, PODS, namespace)))
        file_system = recorded_file_system(body)
        if file_system is None or (body.get("spec") or {}).get("reclaimPolicy") != names.DELETE:
            return world
        sharers = find_sharers(
            body,
            file_system.uuid,
            spec.directory if spec is not None else "/",
            await self._call(self._api.list, JUICEFS_VOLUMES),
            await self._call(self._api.list, PERSISTENT_VOLUMES),
        )
        return replace(world, sharers=sharers.staying, leaving=sharers.leaving)

    async def _act(self, plan: Plan, world: VolumeWorld) -> VolumeWorld:
        match plan.step:
            case Format() | Inspect() as step:
                return replace(world, verdict=await self._ask(step))
            case RemoveData() as step:
                failure = await self._remove_data(step)
                return replace(world, data_removed=failure is None, verdict=failure or world.verdict)
            case Apply(slot=slot) as step:
                try:
                    written = await self._call(self._api.apply, step.resource, step.manifest)
                except Conflict:
                    raise
                except ApiError as error:
                    return replace(world, refusal=Refusal(slot, self._scrubber.clean(str(error))))
                return _with(world, slot, written)
            case Remove(slot=slot, found=found) as step:
                head = metadata(found)
                place = (step.resource, head.get("namespace"), head["name"])
                await self._call(self._api.delete, *place, uid_of(found))
                return _with(world, slot, await self._read(*place))
            case ReleaseClaim(name=name):
                patch = {"spec": {"claimRef": {"uid": None, "resourceVersion": None}}}
                released = await self._call(self._api.patch, PERSISTENT_VOLUMES, None, name, patch)
                return replace(world, volume=released)
            case None:
                return world

    async def _ask(self, step: Format | Inspect) -> Verdict:
        document = step.credentials.document()
        try:
            if isinstance(step, Format):
                options = {"format-options": step.credentials.format_options} if step.credentials.format_options else {}
                return await self._jfs.format({**document, **options, "uuid": step.uuid})
            found = await self._jfs.inspect(document, storage=step.storage)
        except JfsError as error:
            return Failure(self._scrubber.clean(str(error)))
        clean = self._scrubber.clean
        return replace(
            found,
            metadata=replace(found.metadata, message=clean(found.metadata.message)),
            storage=replace(found.storage, message=clean(found.storage.message)),
        )

    async def _remove_data(self, step: RemoveData) -> Failure | None:
        try:
            if step.directory == "/":
                await self._jfs.destroy(step.credentials.document(), step.uuid)
            else:
                await self._jfs.remove(step.credentials.document(), step.directory)
        except JfsError as error:
            return Failure(self._scrubber.clean(str(error)))
        return None

    def _learn(self, key: Key, resolver: Resolver, resolution: Resolution | None) -> None:
        self.references.set(key, resolver.references)
        if resolution is not None and resolution.credentials is not None:
            self._scrubber.learn(key, resolution.credentials.secrets())

    async def _report(self, body: Object, plan: Plan, resource: Resource) -> Object:
        return await self._call(self._reporter.report, body, plan, resource)

    async def _report_volume(self, world: VolumeWorld, plan: Plan) -> Object:
        return await self._call(self._reporter.report, world.body, plan, JUICEFS_VOLUMES, world.attachments)

    def _outcome(self, key: object, fingerprint: str, plan: Plan, verdict: Verdict | None) -> Outcome:
        message = plan.conditions[0].message
        if plan.next is Next.RETRY:
            return Outcome(plan.next, message, self._backoff.failed(key, fingerprint, verdict))
        self._backoff.succeeded(key)
        return Outcome(plan.next, message, EVENT_DELAY if plan.next is Next.EVENT else None)

    async def _read(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        return await self._call(self._api.get, resource, namespace, name)

    async def _call(self, function: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *arguments, **named))

    @asynccontextmanager
    async def _turn(self, key: Key) -> AsyncIterator[None]:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock, self._room:
            yield


def _write_first(plan: Plan, body: Object) -> bool:
    """Whether the status has to be on record before the step: the first slow one, and the end of the managed Secret."""
    if isinstance(plan.step, Remove):
        return plan.step.slot == "managed_secret"
    return isinstance(plan.step, Format | Inspect | RemoveData) and not body.get("status")


def _with(world: VolumeWorld, slot: str, found: Object | None) -> VolumeWorld:
    match slot:
        case "managed_secret":
            return replace(world, managed_secret=found)
        case "volume":
            return replace(world, volume=found)
        case _:
            return replace(world, claim=found)
