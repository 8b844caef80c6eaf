"""What is injected: the sidecar container and its volumes, as the API server would store them. Pure.

Every field that the API server would default is written out (probe times, termination message, requests implied by
limits), so that a second look at an admitted pod finds nothing to change. The security context is explicit in each
field that a pod-level one could otherwise decide: a privileged sidecar mounts a file system and needs root on a tree that
is shared with the node, a restricted one must pass PodSecurity's level of that name – whatever user the application runs as.
"""

from collections.abc import Sequence

from jfs_api import names

from jfs_webhook import quantity
from jfs_webhook.cache import cache_volumes
from jfs_webhook.settings import JsonObject, Settings
from jfs_webhook.volumes import PodVolume, Resources

# Raised whenever the patch changes in a way that is worth telling injected pods apart.
PATCH_VERSION = "2"

TEMPORARY_VOLUME = "juicefs-tmp"
NOBODY = 65534

# Kubernetes' own default grace period, and the least that leaves time to upload what was written last.
MINIMUM_GRACE_SECONDS = 30
# Kept back of the grace period, so that the sidecar ends by itself and is not killed while it unmounts.
GRACE_MARGIN_SECONDS = 5


def control_volume(settings: Settings, mode: str) -> JsonObject:
    """The inline CSI volume that shows the sidecar the pod's own directory of the node service, and tells that the mode."""
    csi: JsonObject = {
        "driver": settings.driver,
        "volumeAttributes": {names.CONTROL_KIND_ATTRIBUTE: names.CONTROL_KIND},
    }
    if mode == names.RESTRICTED:
        csi["volumeAttributes"][names.MODE_ATTRIBUTE] = mode
        csi["readOnly"] = True
    return {"name": names.CONTROL_VOLUME, "csi": csi}


def temporary_volume() -> JsonObject:
    """/tmp of the read-only container. In memory: an emptyDir on disk would keep the autoscaler from draining."""
    return {"name": TEMPORARY_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}


def state_volume() -> JsonObject:
    """What a successor of the sidecar needs of it; lives as long as the pod."""
    return {"name": names.STATE_VOLUME, "emptyDir": {}}


def sidecar_volumes(volumes: Sequence[PodVolume], settings: Settings, mode: str) -> list[JsonObject]:
    """All volumes that the pod gets."""
    return [control_volume(settings, mode), temporary_volume(), state_volume(), *cache_volumes(volumes, mode)[0]]


def sidecar_container(
    pod: JsonObject, volumes: Sequence[PodVolume], grace_seconds: int, settings: Settings, mode: str
) -> JsonObject:
    """The native sidecar (an init container with restartPolicy Always) for all the volumes."""
    probe = ["jfs", "ready", "--control", names.CONTROL_PATH]
    return {
        "name": names.SIDECAR_CONTAINER,
        "image": chosen_image(volumes) or settings.sidecar_image,
        "imagePullPolicy": settings.pull_policy,
        "restartPolicy": "Always",
        "command": ["jfs", "sidecar", "--control", names.CONTROL_PATH],
        "env": [
            {
                "name": names.GRACE_ENVIRONMENT,
                "value": str(max(GRACE_MARGIN_SECONDS, grace_seconds - GRACE_MARGIN_SECONDS)),
            }
        ],
        # A pod-level budget (spec.resources) must not be exceeded by the sum of its containers: the sidecar shares it.
        "resources": {} if pod["spec"].get("resources") else combined_resources(volumes, settings.default_resources),
        "startupProbe": {
            "exec": {"command": probe},
            "periodSeconds": 1,
            # Starting an interpreter on a busy node can take seconds; a probe cut short would only start another.
            "timeoutSeconds": 10,
            "successThreshold": 1,
            "failureThreshold": 120,
        },
        "securityContext": _security_context(pod["spec"].get("securityContext") or {}, mode),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            _control_mount(mode),
            {"name": TEMPORARY_VOLUME, "mountPath": "/tmp"},
            {"name": names.STATE_VOLUME, "mountPath": names.STATE_PATH},
            *cache_volumes(volumes, mode)[1],
        ],
    }


def _control_mount(mode: str) -> JsonObject:
    mount: JsonObject = {"name": names.CONTROL_VOLUME, "mountPath": names.CONTROL_PATH}
    if mode == names.PRIVILEGED:
        return {**mount, "mountPropagation": "Bidirectional"}
    # The mounts, which the node service makes, are seen and no more.
    return {**mount, "readOnly": True, "mountPropagation": "HostToContainer"}


def _security_context(of_pod: JsonObject, mode: str) -> JsonObject:
    if mode == names.RESTRICTED:
        return {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    context: JsonObject = {
        "privileged": True,
        "allowPrivilegeEscalation": True,
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": False,
        "readOnlyRootFilesystem": True,
    }
    # A profile of the pod would be inherited and forbid mount(2). Without one there is nothing to undo.
    for profile in ("seccompProfile", "appArmorProfile"):
        if of_pod.get(profile):
            context[profile] = {"type": "Unconfined"}
    return context


def chosen_image(volumes: Sequence[PodVolume]) -> str | None:
    """The image of the first volume that names one, in the pod's order."""
    return next((volume.wish.image for volume in volumes if volume.wish.image), None)


def combined_resources(volumes: Sequence[PodVolume], defaults: Resources) -> JsonObject:
    """Resources of the one sidecar: the sum over its volumes, each of which is a process with buffers of its own.

    A limit exists only where every volume has one, for the sum of the others would strangle the unlimited volume.
    """
    each = list({volume.source: volume.wish.resources or defaults for volume in volumes}.values())
    limits = {
        resource: quantity.add([wanted["limits"][resource] for wanted in each])
        for resource in sorted(set[str]().union(*(wanted.get("limits", {}) for wanted in each)))
        if all(resource in wanted.get("limits", {}) for wanted in each)
    }
    requests: dict[str, str] = {}
    for resource in sorted(set[str]().union(*(wanted.get("requests", {}) for wanted in each), limits)):
        # A volume with a limit and no request requests its limit: the API server's own rule.
        amounts = [
            amount
            for wanted in each
            if (amount := wanted.get("requests", {}).get(resource) or wanted.get("limits", {}).get(resource))
        ]
        requests[resource] = quantity.add(amounts)
        if resource in limits and quantity.parse(requests[resource]) > quantity.parse(limits[resource]):
            # An API server refuses such a container; the request is the promise, so the limit gives way.
            limits[resource] = requests[resource]
    return {key: amounts for key, amounts in (("limits", limits), ("requests", requests)) if amounts}
