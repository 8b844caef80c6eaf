"""Kubernetes documents as the scenarios need them: short to write, and nothing that a user would not write. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from jfs_api import names

from e2e.cluster import Document

BUSYBOX = "localhost/busybox:1"
# Ends at once on TERM; a bare `sleep` as a container's first process would sit out the grace period.
IDLE = "trap exit TERM; sleep 100000 & wait"
GRACE_SECONDS = 30

Container = dict[str, Any]


def namespace(name: str, labels: Mapping[str, str]) -> Document:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}}


def secret(name: str, values: Mapping[str, str]) -> Document:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(values)}


def volume(name: str, secret_name: str, **spec: Any) -> Document:
    """A JuiceFSVolume of the file system whose credentials the Secret has; `spec` in the API's spelling."""
    return {
        "apiVersion": "juicefs.io/v1alpha1",
        "kind": "JuiceFSVolume",
        "metadata": {"name": name},
        "spec": {"secretRef": {"name": secret_name}, **spec},
    }


def static_volume(namespace: str, name: str, secret: str, storage_class: str = "") -> list[Document]:
    """A hand-written PersistentVolume of our driver, and the claim in the namespace that is bound to it."""
    claim = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{name}"},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": storage_class,
                "csi": {
                    "driver": names.DRIVER,
                    "volumeHandle": f"{namespace}-{name}",
                    "nodePublishSecretRef": {"name": secret, "namespace": namespace},
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {**claim, "volumeName": f"{namespace}-{name}"},
        },
    ]


def container(script: str = IDLE, name: str = "app", mounts: Mapping[str, Any] | None = None, **more: Any) -> Container:
    """A shell script that sees claims: `mounts` maps a claim to a path, or to a path and more of a volumeMount's fields."""
    volume_mounts = []
    for claim, place in (mounts or {}).items():
        fields = {"mountPath": place} if isinstance(place, str) else dict(place)
        volume_mounts.append({"name": claim, **fields})
    return {
        "name": name,
        "image": BUSYBOX,
        "command": ["sh", "-c", script],
        "volumeMounts": volume_mounts,
        **more,
    }


def pod_spec(containers: Sequence[Container], claims: Sequence[str], **more: Any) -> dict[str, Any]:
    """A pod's spec with a volume per claim, of the claim's name."""
    return {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "containers": list(containers),
        "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims],
        **more,
    }


def pod(name: str, script: str = IDLE, mounts: Mapping[str, Any] | None = None, **more: Any) -> Document:
    """A pod of one container `app` that has each claim at its path; `more` are fields of the spec."""
    spec = pod_spec([container(script, mounts=mounts)], list(mounts or {}), **more)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def job(name: str, script: str, mounts: Mapping[str, Any], completions: int = 1) -> Document:
    spec = pod_spec([container(script, mounts=mounts)], list(mounts), restartPolicy="Never")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completions": completions,
            "parallelism": completions,
            "backoffLimit": 0,
            "template": {"spec": spec},
        },
    }


def cron_job(name: str, script: str, mounts: Mapping[str, Any]) -> Document:
    """A CronJob that never begins by itself."""
    spec = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": job(name, script, mounts)["spec"]}}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec}
