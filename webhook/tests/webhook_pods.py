"""Pods and settings that the webhook's tests start from, and the API server's way of applying a patch."""

import copy
import json
from typing import Any

import jsonpatch
from jfs_webhook.settings import Settings
from jfs_webhook.volumes import PodVolume, Wish

Pod = dict[str, Any]

SETTINGS = Settings(
    sidecar_image="registry.example/juicefs-sidecar:1",
    default_resources={"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
)


def claim_volume(name: str, claim: str) -> dict[str, Any]:
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


def pod_with(*volumes: dict[str, Any], **spec: Any) -> Pod:
    """A pod as the API server sends it for admission, its one container mounting every volume."""
    mounts = [{"name": volume["name"], "mountPath": f"/mnt/{volume['name']}"} for volume in volumes]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-6d4f-", "creationTimestamp": None, "labels": {"app": "web"}},
        "spec": {
            "containers": [{"name": "app", "image": "busybox", "volumeMounts": mounts, "resources": {}}],
            "volumes": list(volumes),
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "securityContext": {},
            **spec,
        },
    }


def ours(*names: str, wish: Wish | None = None) -> list[PodVolume]:
    return [PodVolume(name, f"claim/{name}", wish or Wish()) for name in names]


def patched(pod: Pod, patch: list[dict[str, Any]]) -> Pod:
    """The pod after the patch, which travels as JSON as it does to the API server."""
    result = jsonpatch.JsonPatch.from_string(json.dumps(patch)).apply(copy.deepcopy(pod))
    assert isinstance(result, dict)
    return result
