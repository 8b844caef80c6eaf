"""The last look at a pod, after all mutating webhooks: does it still have the sidecar that it was given? Pure.

Another webhook may have added init containers in front of the sidecar, taken away the field that makes it a sidecar, or
shown the control volume to other containers. Such a pod would wait for ever, or give its credentials away; its author
is told instead. Pods without any trace of an injection are not judged here: the node service tells of those.
"""

from jfs_api import names

from jfs_webhook.inject import is_control_volume
from jfs_webhook.settings import JsonObject

_AGAIN = "look for a webhook that changes pods after the JuiceFS webhook, and exclude the namespace from it"


def complaint(pod: JsonObject, driver: str) -> str | None:
    """What is wrong with the pod as it is going to be stored, in one sentence; None if nothing is."""
    spec = pod["spec"]
    inits = spec.get("initContainers") or []
    control = any(is_control_volume(volume, driver) for volume in spec.get("volumes") or [])
    injected = (pod["metadata"].get("labels") or {}).get(names.INJECTED_LABEL) == "true"
    position = next((index for index, each in enumerate(inits) if each.get("name") == names.SIDECAR_CONTAINER), None)
    if position is None:
        if not injected and not control:
            return None
        return f"the container {names.SIDECAR_CONTAINER} was taken away after it had been injected; {_AGAIN}"
    sidecar = inits[position]
    if sidecar.get("restartPolicy") != "Always":
        return (
            f"the init container {names.SIDECAR_CONTAINER} has lost its restartPolicy: Always, without which it never lets"
            f" the application start; {_AGAIN} (or the cluster is older than Kubernetes 1.29)"
        )
    before = [each.get("name") for each in inits[:position] if each.get("restartPolicy") != "Always"]
    if before:
        return (
            f"init container {before[0]} would run before {names.SIDECAR_CONTAINER}, when the volumes are not there yet;"
            f" {_AGAIN}"
        )
    if not control or not _mounts_control(sidecar):
        return f"the volume {names.CONTROL_VOLUME} was taken away after it had been injected; {_AGAIN}"
    for container in [*(spec.get("containers") or []), *(each for each in inits if each is not sidecar)]:
        if _mounts_control(container):
            return (
                f"container {container.get('name')} mounts the volume {names.CONTROL_VOLUME}, over which the JuiceFS sidecar"
                f" receives its credentials; {_AGAIN}"
            )
    return None


def _mounts_control(container: JsonObject) -> bool:
    return any(mount.get("name") == names.CONTROL_VOLUME for mount in container.get("volumeMounts") or [])
