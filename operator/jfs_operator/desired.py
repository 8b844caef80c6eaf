"""The objects that a JuiceFSVolume asks for: the managed Secret, the PersistentVolume and the claim, as server-side apply takes them.

Each manifest names every field we manage, also the empty ones, so that "does the object already look like this" is a comparison
of values (`covers`) and no copy of what was applied has to be kept anywhere. Pure functions.
"""

import json
from typing import Any, Final

from jfs_api import names
from jfs_api.credentials import Credentials
from jfs_api.quantity import parse_quantity
from jfs_api.volume import JuiceFSVolumeSpec

from jfs_operator.api import CLAIMS, PERSISTENT_VOLUMES, SECRETS, Object, metadata, uid_of

_LABELS: Final = {names.MANAGED_BY_LABEL: names.OPERATOR}


def object_name(volume: Object) -> str:
    """Name of the PersistentVolume and of the managed Secret."""
    return f"jfsv-{uid_of(volume)}"


def full_name(volume: Object) -> str:
    """`namespace/name`, the value of the annotation `juicefs.io/volume`."""
    return f"{metadata(volume)['namespace']}/{metadata(volume)['name']}"


def managed_secret(volume: Object, credentials: Credentials, namespace: str) -> Object:
    """The Secret in the operator's namespace that the kubelet reads for the node service."""
    return {
        "apiVersion": SECRETS.api_version,
        "kind": SECRETS.kind,
        "metadata": {
            "name": object_name(volume),
            "namespace": namespace,
            "labels": dict(_LABELS),
            "annotations": {names.VOLUME_ANNOTATION: full_name(volume)},
        },
        "type": "Opaque",
        "data": credentials.secret_data(),
    }


def persistent_volume(
    volume: Object, spec: JuiceFSVolumeSpec, *, uuid: str, driver: str, namespace: str, claim: Object | None
) -> Object:
    """The PersistentVolume, bound in advance to the claim beside the JuiceFSVolume.

    When it has to be made again under a claim that lives, the reference carries the claim's UID: without it the claim would be
    taken for lost. It never has the policy Delete: nothing but this operator removes data.
    """
    name, space = metadata(volume)["name"], metadata(volume)["namespace"]
    reference = {"apiVersion": CLAIMS.api_version, "kind": CLAIMS.kind, "namespace": space, "name": name}
    if claim is not None:
        reference["uid"] = uid_of(claim)
    return {
        "apiVersion": PERSISTENT_VOLUMES.api_version,
        "kind": PERSISTENT_VOLUMES.kind,
        "metadata": {
            "name": object_name(volume),
            "labels": dict(_LABELS),
            "annotations": {**_annotations(volume, spec), names.FILE_SYSTEM_ANNOTATION: uuid},
        },
        "spec": {
            "capacity": {"storage": spec.capacity},
            "accessModes": list(spec.access_modes),
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "mountOptions": spec.persistent_volume_options(),
            "claimRef": reference,
            "csi": {
                "driver": driver,
                "volumeHandle": uid_of(volume),
                "volumeAttributes": {names.VOLUME_ANNOTATION: full_name(volume)},
                "nodePublishSecretRef": {"name": object_name(volume), "namespace": namespace},
            },
        },
    }


def claim(volume: Object, spec: JuiceFSVolumeSpec, existing: Object | None, *, uuid: str | None) -> Object:
    """The claim. Its request stays what it was made with: claims without a storage class cannot be resized.

    `uuid` is left out at first and given once the PersistentVolume is bound: the binder of the controller manager trips over
    itself in about every third such claim (its two workers both write the volume's phase) and would look again only after 15 s;
    a write on the claim makes it look at once.
    """
    request = spec.capacity
    if existing is not None:
        request = existing["spec"].get("resources", {}).get("requests", {}).get("storage", request)
    return {
        "apiVersion": CLAIMS.api_version,
        "kind": CLAIMS.kind,
        "metadata": {
            "name": metadata(volume)["name"],
            "namespace": metadata(volume)["namespace"],
            "labels": dict(_LABELS),
            "annotations": _annotations(volume, spec) | ({names.FILE_SYSTEM_ANNOTATION: uuid} if uuid else {}),
            "ownerReferences": [
                {
                    "apiVersion": f"{names.GROUP}/{names.VERSION}",
                    "kind": names.VOLUME_KIND,
                    "name": metadata(volume)["name"],
                    "uid": uid_of(volume),
                    "controller": True,
                }
            ],
        },
        "spec": {
            "accessModes": list(spec.access_modes),
            "volumeMode": "Filesystem",
            "storageClassName": "",
            "volumeName": object_name(volume),
            "resources": {"requests": {"storage": request}},
        },
    }


def owns_claim(volume: Object, found: Object) -> bool:
    """Whether the claim of the JuiceFSVolume's name is the one that was made for it."""
    return bool(found["spec"].get("volumeName") == object_name(volume))


def covers(found: Any, wanted: Any, key: str = "") -> bool:
    """Whether `found` already has everything that `wanted` names. Empty equals missing; quantities compare by value."""
    if isinstance(wanted, dict):
        found = found or {}
        if key == "data" and set(found) != set(wanted):
            return False  # a key that is no longer wanted in the managed Secret must go
        if key in {"capacity", "requests"}:
            return all(
                found.get(name) and parse_quantity(found[name]) == parse_quantity(wanted[name]) for name in wanted
            )
        return isinstance(found, dict) and all(covers(found.get(name), value, name) for name, value in wanted.items())
    if isinstance(wanted, list):
        found = found or []
        return len(found) == len(wanted) and all(covers(a, b) for a, b in zip(found, wanted, strict=True))
    return bool(found == wanted) or (not found and not wanted)


def _annotations(volume: Object, spec: JuiceFSVolumeSpec) -> dict[str, str]:
    return {
        names.VOLUME_ANNOTATION: full_name(volume),
        names.SIDECAR_ANNOTATION: json.dumps(spec.sidecar_annotation(), sort_keys=True),
    }
