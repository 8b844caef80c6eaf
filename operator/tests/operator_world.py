"""A world for reconcile tests: the fake API server, a fake client, a clock that stands still, and the binder played by hand."""

import base64
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from jfs_api import names
from jfs_api.conditions import Condition, find
from jfs_operator.api import (
    CLAIMS,
    EVENTS,
    JUICEFS_SECRETS,
    JUICEFS_VOLUMES,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    Object,
    metadata,
    uid_of,
)
from jfs_operator.command import Check, Document, FileSystem, Inspection, JfsError
from jfs_operator.memory import MemoryApi
from jfs_operator.reconcile import Outcome, Reconciler
from jfs_operator.recorder import Recorder
from jfs_operator.report import Reporter
from jfs_operator.scrub import Scrubber

OPERATOR_NAMESPACE = "juicefs-system"
PASSWORD = "hunter2-in-url"
SECRET_KEY = "s3cr3t-access"
KEYS = {
    "name": "demo",
    "metaurl": f"redis://user:{PASSWORD}@redis:6379/1",
    "storage": "s3",
    "bucket": "http://s3:8333/demo",
    "access-key": "AKIA",
    "secret-key": SECRET_KEY,
}


def encoded(values: Mapping[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


class FakeJfs:
    """File systems by metadata URL; fails with `trouble` when that is set. `calls` holds the commands, never a secret."""

    def __init__(self) -> None:
        self.file_systems: dict[str, FileSystem] = {}
        self.calls: list[str] = []
        self.trouble: str | None = None
        self.removed: list[str] = []
        self.storage_ok = True

    async def format(self, document: Document) -> FileSystem:
        self._call("format")
        url = str(document["metaurl"])
        return self.file_systems.setdefault(url, FileSystem(str(document["name"]), str(document["uuid"])))

    async def inspect(self, document: Document, *, storage: bool) -> Inspection:
        self._call("status")
        found = self.file_systems.get(str(document["metaurl"]))
        side = (
            Check(self.storage_ok, "" if self.storage_ok else f"denied for {document.get('secret-key')}")
            if storage
            else Check(None, "")
        )
        return Inspection(Check(True, ""), side, found)

    async def destroy(self, document: Document, uuid: str) -> None:
        self._call("destroy")
        url = str(document["metaurl"])
        if url in self.file_systems and self.file_systems[url].uuid != uuid:
            raise JfsError("the volume has another UUID")
        self.file_systems.pop(url, None)
        self.removed.append("/")

    async def remove(self, document: Document, path: str) -> None:
        self._call("rmr")
        self.removed.append(path)

    def _call(self, command: str) -> None:
        self.calls.append(command)
        if self.trouble is not None:
            raise JfsError(self.trouble)


class World:
    def __init__(self) -> None:
        self.api = MemoryApi()
        self.jfs = FakeJfs()
        self.time = 0.0
        self._stamps = itertools.count(1)
        self.scrubber = Scrubber()
        self.reconciler: Reconciler
        self.restart()

    def restart(self) -> None:
        """A new process: nothing is remembered."""
        self.close()
        now: Callable[[], str] = lambda: f"2030-01-01T00:00:{next(self._stamps) % 60:02d}Z"  # noqa: E731
        self.scrubber = Scrubber()
        self.reconciler = Reconciler(
            self.api,
            self.jfs,
            namespace=OPERATOR_NAMESPACE,
            driver=names.DRIVER,
            clock=lambda: self.time,
            reporter=Reporter(self.api, Recorder(self.api, now), self.scrubber, now),
            scrubber=self.scrubber,
        )

    def close(self) -> None:
        if hasattr(self, "reconciler"):
            self.reconciler.close()

    def add_secret(self, name: str = "demo", **changes: str) -> None:
        values = {**KEYS, **{key.replace("_", "-"): value for key, value in changes.items()}}
        data = encoded({key: value for key, value in values.items() if value})
        self.api.apply(SECRETS, {"metadata": {"name": name, "namespace": "apps"}, "data": data})

    def add_volume(self, name: str = "data", **spec: Any) -> Object:
        spec = {"secretRef": {"name": "demo"}, "reclaimPolicy": "Retain", **spec}
        return self.api.create(
            JUICEFS_VOLUMES,
            {
                "metadata": {"name": name, "namespace": "apps", "finalizers": [names.FINALIZER]},
                "spec": {key: value for key, value in spec.items() if value is not None},
            },
        )

    def add_pod(self, name: str, claim: str, phase: str = "Running") -> None:
        volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]
        self.api.create(
            PODS,
            {"metadata": {"name": name, "namespace": "apps"}, "spec": {"volumes": volumes}, "status": {"phase": phase}},
        )

    async def reconcile(self, name: str = "data") -> Outcome:
        return await self.reconciler.volume("apps", name)

    async def settle(self, name: str = "data") -> Outcome:
        """Reconcile, letting the binder work in between, until nothing more happens."""
        for _ in range(6):
            outcome = await self.reconcile(name)
            if not self.bind():
                return outcome
        raise AssertionError("the volume does not settle")

    def bind(self) -> bool:
        """What the controller manager does with volumes and claims; whether it had anything to do."""
        worked = False
        for volume in self.api.list(PERSISTENT_VOLUMES):
            reference = volume["spec"].get("claimRef")
            if not reference:
                continue
            claim = self.api.get(CLAIMS, reference["namespace"], reference["name"])
            bound = reference.get("uid")
            if bound and (claim is None or uid_of(claim) != bound):
                phase = "Released"
            elif claim is not None and claim["spec"]["volumeName"] == metadata(volume)["name"]:
                phase = "Bound"
                if not bound:
                    patch = {"spec": {"claimRef": {"uid": uid_of(claim)}}}
                    self.api.patch(PERSISTENT_VOLUMES, None, metadata(volume)["name"], patch)
                if (claim.get("status") or {}).get("phase") != "Bound":
                    self.api.patch(CLAIMS, "apps", reference["name"], {"status": {"phase": "Bound"}})
                    worked = True
            else:
                phase = "Available"
            if (volume.get("status") or {}).get("phase") != phase:
                self.api.patch(PERSISTENT_VOLUMES, None, metadata(volume)["name"], {"status": {"phase": phase}})
                worked = True
        return worked

    def protect_claim(self, name: str = "data") -> None:
        """As the controller manager does while pods use it."""
        self.api.patch(CLAIMS, "apps", name, {"metadata": {"finalizers": ["kubernetes.io/pvc-protection"]}})

    def release_claim(self, name: str = "data") -> None:
        """The last pod has ended."""
        self.api.remove(CLAIMS, "apps", name)

    def delete(self, name: str = "data") -> None:
        self.api.delete(JUICEFS_VOLUMES, "apps", name, uid_of(self.volume(name)))

    def volume(self, name: str = "data") -> Object:
        found = self.api.get(JUICEFS_VOLUMES, "apps", name)
        assert found is not None
        return found

    def persistent_volume(self, name: str = "data") -> Object | None:
        return self.api.get(PERSISTENT_VOLUMES, None, f"jfsv-{uid_of(self.volume(name))}")

    def managed_secret(self, name: str = "data") -> Object | None:
        return self.api.get(SECRETS, OPERATOR_NAMESPACE, f"jfsv-{uid_of(self.volume(name))}")

    def claim(self, name: str = "data") -> Object | None:
        return self.api.get(CLAIMS, "apps", name)

    def condition(self, type: str, name: str = "data") -> Condition:
        found = find(self.volume(name)["status"]["conditions"], type)
        assert found is not None
        return found

    def secret_condition(self, type: str, name: str) -> Condition:
        body = self.api.get(JUICEFS_SECRETS, "apps", name)
        assert body is not None
        found = find(body["status"]["conditions"], type)
        assert found is not None
        return found

    def events(self) -> list[str]:
        return [event["reason"] for event in self.api.list(EVENTS)]

    def shown(self) -> str:
        """Everything that anybody who may not read Secrets can see."""
        kinds = (JUICEFS_VOLUMES, JUICEFS_SECRETS, PERSISTENT_VOLUMES, CLAIMS, EVENTS)
        return repr([self.api.list(kind) for kind in kinds])
