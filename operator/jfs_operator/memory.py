"""A fake API server in memory that obeys `Api`: what the unit tests reconcile against.

It keeps what matters to a level-triggered operator: UIDs, resourceVersions, generations, finalizers that delay deletion,
fields that vanish when an apply no longer names them, conflicts of `create` and `replace`. It runs no controllers: a test plays
them. It can refuse or fail the next calls. Thread-safe by one lock.
"""

import copy
import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from jfs_operator.api import ApiError, Conflict, Object, Resource, metadata

_Key = tuple[str, str | None, str]
_Fault = Callable[[str, Resource, str], Exception | None]


class MemoryApi:
    """`Api` over dictionaries; `calls` lists the writes as (verb, plural, name)."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._objects: dict[_Key, Object] = {}
        self._applied: dict[tuple[_Key, bool], Object] = {}
        self._versions = itertools.count(1)
        self._fault: _Fault = lambda verb, resource, name: None
        self._read_fault: _Fault = lambda verb, resource, name: None
        self.calls: list[tuple[str, str, str]] = []

    def fail(self, fault: _Fault | None) -> None:
        """From now on each write first asks `fault(verb, resource, name)` for an exception to raise; None ends it."""
        self._fault = fault or (lambda verb, resource, name: None)

    def deny(self, fault: _Fault | None) -> None:
        """The same for reads."""
        self._read_fault = fault or (lambda verb, resource, name: None)

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        with self._lock:
            self._read("get", resource, name)
            return copy.deepcopy(self._objects.get(self._key(resource, namespace, name)))

    def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        with self._lock:
            self._read("list", resource, "")
            return [
                copy.deepcopy(body)
                for (plural, space, _), body in self._objects.items()
                if plural == resource.plural
                and namespace in {None, space}
                and _selects(labels, metadata(body).get("labels") or {})
                and _selects(fields, _flat(body))
            ]

    def create(self, resource: Resource, manifest: Object) -> Object:
        with self._lock:
            key = self._key_of(resource, manifest)
            self._write("create", resource, key[2])
            if key in self._objects:
                raise Conflict(409, f'{resource.plural} "{key[2]}" already exists')
            return self._store(
                key, {"apiVersion": resource.api_version, "kind": resource.kind, **copy.deepcopy(manifest)}
            )

    def replace(self, resource: Resource, manifest: Object) -> Object:
        with self._lock:
            key = self._key_of(resource, manifest)
            self._write("replace", resource, key[2])
            current = self._objects.get(key)
            if current is None:
                raise ApiError(404, f'{resource.plural} "{key[2]}" not found')
            if metadata(manifest).get("resourceVersion") != metadata(current)["resourceVersion"]:
                raise Conflict(409, f'{resource.plural} "{key[2]}": the object has been modified')
            return self._store(key, copy.deepcopy(manifest))

    def apply(self, resource: Resource, manifest: Object, *, status: bool = False) -> Object:
        with self._lock:
            key = self._key_of(resource, manifest)
            self._write("apply status" if status else "apply", resource, key[2])
            current = self._objects.get(key)
            wanted = metadata(manifest).get("uid")
            if current is None and (status or wanted):
                raise ApiError(404, f'{resource.plural} "{key[2]}" not found')
            if current is not None and wanted and wanted != metadata(current)["uid"]:
                raise Conflict(409, f'{resource.plural} "{key[2]}": the UID is another one')
            ours = (
                {"status": manifest.get("status", {})}
                if status
                else {k: v for k, v in manifest.items() if k != "status"}
            )
            body = copy.deepcopy(current or {})
            _drop(body, self._applied.get((key, status), {}), ours)
            _merge(body, copy.deepcopy(ours))
            self._applied[key, status] = copy.deepcopy(ours)
            if body == current:
                return copy.deepcopy(body)
            return self._store(key, body)

    def patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object, *, strategic: bool = False
    ) -> Object:
        with self._lock:
            self._write("patch", resource, name)
            key = self._key(resource, namespace, name)
            if key not in self._objects:
                raise ApiError(404, f'{resource.plural} "{name}" not found')
            body = copy.deepcopy(self._objects[key])
            for guard in ("uid", "resourceVersion"):
                if metadata(patch).get(guard, metadata(body)[guard]) != metadata(body)[guard]:
                    raise Conflict(409, f'{resource.plural} "{name}": the object has been modified')
            _merge_patch(body, copy.deepcopy(patch), strategic=strategic)
            return self._store(key, body)

    def delete(self, resource: Resource, namespace: str | None, name: str, uid: str) -> None:
        with self._lock:
            self._write("delete", resource, name)
            key = self._key(resource, namespace, name)
            body = self._objects.get(key)
            if body is None or metadata(body)["uid"] != uid:
                return
            if metadata(body).get("finalizers"):
                metadata(body).setdefault("deletionTimestamp", "2000-01-01T00:00:00Z")
                self._store(key, body)
            else:
                self.remove(resource, namespace, name)

    def remove(self, resource: Resource, namespace: str | None, name: str) -> None:
        """Take an object away at once, finalizers or not."""
        with self._lock:
            key = self._key(resource, namespace, name)
            self._objects.pop(key, None)
            self._applied.pop((key, False), None)
            self._applied.pop((key, True), None)

    def _read(self, verb: str, resource: Resource, name: str) -> None:
        if error := self._read_fault(verb, resource, name):
            raise error

    def _write(self, verb: str, resource: Resource, name: str) -> None:
        if error := self._fault(verb, resource, name):
            raise error
        self.calls.append((verb, resource.plural, name))

    def _store(self, key: _Key, body: Object) -> Object:
        head = body.setdefault("metadata", {})
        former = self._objects.get(key)
        version = next(self._versions)
        head.setdefault("uid", f"uid-{version}")
        head["resourceVersion"] = str(version)
        if former is None:
            head.setdefault("generation", 1)
        elif former.get("spec") != body.get("spec"):
            head["generation"] = metadata(former).get("generation", 1) + 1
        self._objects[key] = body
        return copy.deepcopy(body)

    @staticmethod
    def _key(resource: Resource, namespace: str | None, name: str) -> _Key:
        return resource.plural, namespace if resource.namespaced else None, name

    def _key_of(self, resource: Resource, manifest: Object) -> _Key:
        return self._key(resource, metadata(manifest).get("namespace"), metadata(manifest)["name"])


def _selects(selector: str, values: Mapping[str, Any]) -> bool:
    terms = [term.partition("=") for term in selector.split(",") if term]
    return all(str(values.get(key, "")) == value for key, _, value in terms)


def _flat(body: Object, prefix: str = "") -> dict[str, Any]:
    """Values by dotted path, as field selectors name them."""
    found: dict[str, Any] = {}
    for key, value in body.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _merge(body: Object, ours: Object) -> None:
    for key, value in ours.items():
        if isinstance(value, dict) and isinstance(body.get(key), dict):
            _merge(body[key], value)
        else:
            body[key] = value


def _drop(body: Any, former: Any, ours: Any) -> None:
    """Remove the fields that the former apply named and this one does not."""
    for key, value in former.items():
        if key not in ours:
            body.pop(key, None)
        elif isinstance(value, dict) and isinstance(ours[key], dict) and isinstance(body.get(key), dict):
            _drop(body[key], value, ours[key])


def _merge_patch(body: Object, patch: Object, *, strategic: bool = False) -> None:
    for key, value in patch.items():
        if value is None:
            body.pop(key, None)
        elif isinstance(value, dict):
            _merge_patch(body.setdefault(key, {}), value, strategic=strategic)
        elif strategic and isinstance(value, list) and all(isinstance(each, dict) for each in value):
            by_name = {each.get("name"): each for each in body.setdefault(key, [])}
            for each in value:  # only changes of what is there are needed here
                _merge_patch(by_name[each["name"]], each, strategic=True)
        else:
            body[key] = value
