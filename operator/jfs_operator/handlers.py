"""What kopf calls: each handler only says which object to reconcile, none looks at what happened.

JuiceFSVolumes have real handlers (create, update, resume, delete, timer) and a finalizer, since their deletion means work.
Everything else (JuiceFSSecrets, Secrets, PersistentVolumes, claims, events) is watched by low-level handlers: no finalizer, no
annotation, no copy is ever left on those. Runs in kopf's event loop.
"""

import random
from collections.abc import Iterable
from typing import Any, Final

import kopf
from jfs_api import names
from jfs_api.conditions import Condition

from jfs_operator.api import (
    CLAIMS,
    EVENTS,
    JUICEFS_NODES,
    JUICEFS_SECRETS,
    JUICEFS_VOLUMES,
    PERSISTENT_VOLUMES,
    SECRETS,
    ApiError,
    ApiUnavailable,
    Object,
    Resource,
    annotation,
    metadata,
)
from jfs_operator.queue import AFTER_ERROR, Queue
from jfs_operator.reconcile import Outcome, Reconciler
from jfs_operator.references import Key, Reference
from jfs_operator.rollout.runner import Rollout
from jfs_operator.steps import MountReport, Next
from jfs_operator.watch_audit import WatchAudit

_MOUNT_REASONS: Final = names.EVENTS_WORKING | names.EVENTS_FAILING
# A check of credentials starts a process and writes a test object: every so many rounds of the timer is enough.
_RECHECK: Final = 5
# What pods start and end together becomes one write of a volume's status.
_GATHER: Final = 2.0
# How often a delete handler goes on by itself before it hands back to kopf, which is then free to notice an exit.
_ROUNDS: Final = 6
_LONGEST_REFUSAL: Final = 15.0  # seconds until a refused deletion looks again: what it waits for has no event


class GenerationStorage(kopf.AnnotationsDiffBaseStorage):
    """Remembers the generation that was handled, not a copy of what was in it."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        essence: Any = {"spec": {"generation": body.metadata.get("generation", 0)}}
        found: kopf.BodyEssence = essence
        return found


def configure(settings: kopf.OperatorSettings) -> None:
    """kopf as it has to be in production: bounded watches, own names, silence where we speak ourselves."""
    settings.persistence.finalizer = names.FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
    settings.persistence.diffbase_storage = GenerationStorage(prefix=names.GROUP, key="handled")
    settings.posting.level = 30  # logging.WARNING
    settings.posting.loggers = False  # our events are posted at transitions, by `recorder`
    settings.scanning.disabled = True
    settings.watching.server_timeout = 270
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 15
    settings.networking.request_timeout = 30
    settings.networking.enforce_retry_after = True
    settings.process.ultimate_exiting_timeout = 20
    # Events of all namespaces would be a flood; only node services post on PersistentVolumes.
    settings.watching.field_selectors["", "v1", EVENTS.plural] = "involvedObject.kind=PersistentVolume"
    settings.watching.label_selectors["", "v1", CLAIMS.plural] = f"{names.MANAGED_BY_LABEL}={names.OPERATOR}"
    # Tokens and Helm's releases are never credentials, and the largest Secrets of a cluster.
    settings.watching.field_selectors["", "v1", SECRETS.plural] = (
        "type!=kubernetes.io/service-account-token,type!=helm.sh/release.v1"
    )


class Handlers:
    """Registers itself in a registry; `resync` is the timer's interval in seconds."""

    def __init__(self, reconciler: Reconciler, *, resync: float) -> None:
        self._reconciler = reconciler
        self._resync = resync
        self.queue = Queue(self.reconcile)
        self.rollout: Rollout | None = None
        self.audits = {resource: WatchAudit() for resource in (JUICEFS_VOLUMES, JUICEFS_SECRETS, JUICEFS_NODES)}

    async def reconcile(self, key: Key) -> Outcome:
        """What the queue does with a key."""
        if key.kind == JUICEFS_VOLUMES.kind:
            return await self._reconciler.volume(key.namespace, key.name)
        if key.kind == JUICEFS_SECRETS.kind:
            outcome = await self._reconciler.secret(key.namespace, key.name)
            if outcome.next is Next.NOTHING:  # credentials that work now may not work tomorrow
                return Outcome(outcome.next, outcome.message, self._resync * _RECHECK * (1 + random.random() / 4))
            return outcome
        return await self._reconciler.static(key.name)

    def register(self, registry: kopf.OperatorRegistry) -> None:
        volumes = (names.GROUP, names.VERSION, names.VOLUME_PLURAL)
        kopf.on.create(*volumes, registry=registry, id="reconcile")(self.change)
        kopf.on.update(*volumes, registry=registry, id="reconcile")(self.change)
        kopf.on.resume(*volumes, registry=registry, id="reconcile")(self.change)
        kopf.on.delete(*volumes, registry=registry, id="delete")(self.delete)
        kopf.timer(
            *volumes,
            registry=registry,
            id="resync",
            interval=self._resync,
            initial_delay=lambda **_: self._resync * (0.5 + random.random() / 2),
        )(self.resync)
        kopf.on.event(*volumes, registry=registry, id="see")(self.volume_event)
        kopf.on.event(names.GROUP, names.VERSION, names.SECRET_PLURAL, registry=registry, id="see")(self.secret_event)
        kopf.on.event(names.GROUP, names.VERSION, names.NODE_PLURAL, registry=registry, id="see")(self.node_event)
        kopf.on.event("", "v1", SECRETS.plural, registry=registry, id="see")(self.credentials_event)
        kopf.on.event("", "v1", PERSISTENT_VOLUMES.plural, registry=registry, id="see")(self.persistent_volume_event)
        kopf.on.event("", "v1", CLAIMS.plural, registry=registry, id="see")(self.claim_event)
        kopf.on.event("", "v1", EVENTS.plural, registry=registry, id="see")(self.mount_event)

    async def change(self, *, namespace: str | None, name: str, **_: Any) -> None:
        """create, update and resume of a JuiceFSVolume."""
        key = _volume_key(namespace, name)
        try:
            outcome = await self._reconciler.volume(key.namespace, name)
        except (ApiError, ApiUnavailable) as error:
            raise kopf.TemporaryError(str(error), delay=AFTER_ERROR) from error
        if outcome.next is Next.RETRY:
            raise kopf.TemporaryError(outcome.message, delay=outcome.delay)
        if outcome.delay is not None:
            self.queue.later(key, outcome.delay)

    async def resync(self, *, namespace: str | None, name: str, **_: Any) -> None:
        """The timer of a JuiceFSVolume. What fails goes to the queue: a handler that failed is being retried by kopf already."""
        key = _volume_key(namespace, name)
        try:
            outcome = await self._reconciler.volume(key.namespace, name)
        except (ApiError, ApiUnavailable) as error:
            raise kopf.TemporaryError(str(error), delay=AFTER_ERROR) from error
        if outcome.delay is not None:
            self.queue.later(key, outcome.delay)

    async def delete(self, *, namespace: str | None, name: str, **_: Any) -> None:
        """Goes on at each event of the volume's objects; ends when nothing is left, which lets kopf take the finalizer off."""
        key = _volume_key(namespace, name)
        for _round in range(_ROUNDS):
            try:
                outcome = await self._reconciler.volume(key.namespace, name)
            except (ApiError, ApiUnavailable) as error:
                raise kopf.TemporaryError(str(error), delay=AFTER_ERROR) from error
            if outcome.next is Next.GONE:
                return
            delay = outcome.delay or 0.0
            if outcome.next is Next.RETRY:
                raise kopf.TemporaryError(outcome.message, delay=min(delay, _LONGEST_REFUSAL))
            await self.queue.something_happens(key, delay)
        raise kopf.TemporaryError("the deletion goes on", delay=1)

    async def volume_event(self, event: Any, body: kopf.Body, **_: Any) -> None:
        self._see(JUICEFS_VOLUMES, event, dict(body))
        self._tell_rollout(event, dict(body))

    async def secret_event(self, event: Any, body: kopf.Body, **_: Any) -> None:
        """A JuiceFSSecret changed: it is checked, and so are the volumes that use it."""
        found = dict(body)
        key = self._see(JUICEFS_SECRETS, event, found)
        if event["type"] != "DELETED" and self._is_new_generation(found):
            self.queue.add(key)
        self._dependents(JUICEFS_SECRETS, found)

    async def credentials_event(self, body: kopf.Body, **_: Any) -> None:
        """A Secret changed: whoever refers to it, or owns it, is reconciled."""
        found = dict(body)
        self._dependents(SECRETS, found)
        self._owner(found)

    async def persistent_volume_event(self, event: Any, body: kopf.Body, **_: Any) -> None:
        found = dict(body)
        self._tell_rollout(event, found)
        if self._reconciler.is_static(found):
            self.queue.add(Key(PERSISTENT_VOLUMES.kind, "", metadata(found)["name"]))
        else:
            self._owner(found)

    async def claim_event(self, body: kopf.Body, **_: Any) -> None:
        self._owner(dict(body))

    async def mount_event(self, event: Any, body: kopf.Body, **_: Any) -> None:
        """A node service posted on a PersistentVolume: the owner's condition Mountable."""
        reason = str(body.get("reason", ""))
        if event["type"] == "DELETED" or reason not in _MOUNT_REASONS:
            return
        name = str((body.get("involvedObject") or {}).get("name", ""))
        time = body.get("lastTimestamp") or body.get("eventTime") or body.metadata.get("creationTimestamp") or ""
        if not self._reconciler.mounted(name, MountReport(reason, str(body.get("message", "")), str(time))):
            return
        if key := self._reconciler.owner_of(name):
            self.queue.add(key)

    async def node_event(self, event: Any, body: kopf.Body, **_: Any) -> None:
        """A node service wrote its JuiceFSNode: the volumes whose attachments changed."""
        found, deleted = dict(body), event["type"] == "DELETED"
        self.audits[JUICEFS_NODES].seen(found, deleted=deleted)
        self.attached(self._reconciler.attachments.seen(found, deleted=deleted))

    def rolled_out(self, told: dict[str, Condition]) -> None:
        """A rollout has looked at all pods."""
        former = self._reconciler.sidecars
        self._reconciler.sidecars = told
        changed = (
            told.keys() if former is None else {pv for pv in told.keys() | former if told.get(pv) != former.get(pv)}
        )
        self.attached(changed)

    def attached(self, persistent_volumes: Iterable[str]) -> None:
        """Bring the status of these volumes up to date soon."""
        for name in persistent_volumes:
            if key := self._reconciler.owner_of(name):
                self.queue.within(key, _GATHER)

    def nodes_listed(self, bodies: list[Object]) -> list[Object]:
        """All JuiceFSNodes as a listing has them; returns those to delete, which nobody renews."""
        self.attached(self._reconciler.attachments.listed(bodies))
        return self._reconciler.attachments.forgotten()

    def _tell_rollout(self, event: Any, body: Object) -> None:
        if self.rollout is not None:
            (self.rollout.gone if event["type"] == "DELETED" else self.rollout.seen)(body)

    def _see(self, resource: Resource, event: Any, body: Object) -> Key:
        deleted = event["type"] == "DELETED"
        key = Key(resource.kind, metadata(body)["namespace"], metadata(body)["name"])
        self.audits[resource].seen(body, deleted=deleted)
        if deleted:
            self.queue.forget(key)
            self._reconciler.forget(key)
        return key

    def _is_new_generation(self, body: Object) -> bool:
        """Our own writes of the status come back as events too; they must not start the next check."""
        observed = (body.get("status") or {}).get("observedGeneration")
        key = Key(JUICEFS_SECRETS.kind, metadata(body)["namespace"], metadata(body)["name"])
        return observed != metadata(body).get("generation") or not self._reconciler.references.knows(key)

    def _dependents(self, resource: Resource, body: Object) -> None:
        reference = Reference(resource.plural, metadata(body)["namespace"], metadata(body)["name"])
        for key in self._reconciler.references.dependents(reference):
            self.queue.add(key)

    def _owner(self, body: Object) -> None:
        namespace, slash, name = annotation(body, names.VOLUME_ANNOTATION).partition("/")
        if slash:
            self.queue.add(Key(JUICEFS_VOLUMES.kind, namespace, name))


def _volume_key(namespace: str | None, name: str) -> Key:
    return Key(JUICEFS_VOLUMES.kind, namespace or "", name)
