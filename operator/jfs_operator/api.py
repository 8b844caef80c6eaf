"""What the operator asks of the API server: a small protocol that the real client (`kube`) and the fake (`memory`) both obey.

Objects are plain dictionaries as the API server sends them. Calls block; `Reconciler` makes them in threads. Every write is
either a server-side apply by our field manager, so that repeating it changes nothing, or guarded by a UID or resourceVersion.
"""

from typing import Any, Final, NamedTuple, Protocol

from jfs_api import names

Object = dict[str, Any]


class Resource(NamedTuple):
    """A kind of object and where the API server keeps it."""

    api_version: str
    plural: str
    kind: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The URL path of a collection, or of one object."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        path = root + self.api_version
        if self.namespaced and namespace is not None:
            path += f"/namespaces/{namespace}"
        path += f"/{self.plural}"
        return path if name is None else f"{path}/{name}"


SECRETS: Final = Resource("v1", "secrets", "Secret")
PODS: Final = Resource("v1", "pods", "Pod")
EVENTS: Final = Resource("v1", "events", "Event")
PERSISTENT_VOLUMES: Final = Resource("v1", "persistentvolumes", "PersistentVolume", namespaced=False)
CLAIMS: Final = Resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim")
LEASES: Final = Resource("coordination.k8s.io/v1", "leases", "Lease")
JUICEFS_VOLUMES: Final = Resource(f"{names.GROUP}/{names.VERSION}", names.VOLUME_PLURAL, names.VOLUME_KIND)
JUICEFS_SECRETS: Final = Resource(f"{names.GROUP}/{names.VERSION}", names.SECRET_PLURAL, names.SECRET_KIND)
JUICEFS_NODES: Final = Resource(f"{names.GROUP}/{names.VERSION}", names.NODE_PLURAL, names.NODE_KIND)


class ApiError(Exception):
    """The API server refused a request, and would refuse it again; its message says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Conflict(ApiError):
    """Somebody else wrote or made the object first: read again and decide anew."""


class ApiUnavailable(Exception):
    """The API server did not answer, or has trouble of its own: the same request may succeed later."""


class Api(Protocol):
    """Raises ApiError, Conflict or ApiUnavailable."""

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """The object, or None when there is none."""
        ...

    def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """All objects of the namespace, or of the cluster, that fit the selectors (`key=value`, separated by commas)."""
        ...

    def create(self, resource: Resource, manifest: Object) -> Object:
        """Make the object; Conflict when it exists."""
        ...

    def replace(self, resource: Resource, manifest: Object) -> Object:
        """Write the whole object; Conflict unless `metadata.resourceVersion` is the current one."""
        ...

    def apply(self, resource: Resource, manifest: Object, *, status: bool = False) -> Object:
        """Server-side apply by our field manager, taking fields over from others; `status` writes the status and nothing else."""
        ...

    def patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object, *, strategic: bool = False
    ) -> Object:
        """JSON merge patch, or a strategic one, which knows lists of named things; Conflict unless a UID and a
        resourceVersion in its metadata are the object's."""
        ...

    def delete(self, resource: Resource, namespace: str | None, name: str, uid: str) -> None:
        """Delete the object of that UID; an object that is gone, or another one of the name, is left alone."""
        ...


def metadata(body: Object) -> dict[str, Any]:
    """An object's metadata, never None."""
    found: dict[str, Any] = body.get("metadata") or {}
    return found


def uid_of(body: Object) -> str:
    return str(metadata(body).get("uid", ""))


def is_deleting(body: Object) -> bool:
    return bool(metadata(body).get("deletionTimestamp"))


def annotation(body: Object, key: str) -> str:
    return str((metadata(body).get("annotations") or {}).get(key, ""))
