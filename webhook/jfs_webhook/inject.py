"""The injection itself: pod, its volumes of our driver, settings → JSON patch (RFC 6902). Pure and deterministic.

Invariant: the patch converges. Applied to any pod it yields a pod for which the patch is empty, whatever another
webhook did to the sidecar in between (the API server calls us again after such a change). Only what is ours is
touched: the sidecar container and its volumes, one label and two annotations, the propagation of the application's
mounts of our volumes, and a grace period that is too short. Other webhooks may add environment variables, mounts and
resources to the sidecar (cloud identities and LimitRanges do), everything else in it is ours.
Operations name positions of the pod as it came: those on existing entries stand before the insertion that moves them.
"""

from collections.abc import Iterator, Sequence

from jfs_api import names

from jfs_webhook import quantity
from jfs_webhook.cache import CACHE_VOLUME
from jfs_webhook.settings import JsonObject, Settings
from jfs_webhook.sidecar import (
    MINIMUM_GRACE_SECONDS,
    PATCH_VERSION,
    TEMPORARY_VOLUME,
    sidecar_container,
    sidecar_volumes,
)
from jfs_webhook.volumes import PodVolume


class InjectionRefused(Exception):
    """The pod cannot work with a sidecar as it is written; the message tells its author what to change."""


def inject(
    pod: JsonObject, volumes: Sequence[PodVolume], settings: Settings, mode: str = names.PRIVILEGED
) -> list[JsonObject]:
    """JSON patch that gives the pod its sidecar; empty if it has no volume of ours or has everything already.

    Raises InjectionRefused for a pod that uses our names for something else or cannot run the sidecar.
    """
    if not volumes:
        return []
    _refuse_impossible(pod, settings)
    grace = pod["spec"].get("terminationGracePeriodSeconds")
    wanted_grace = MINIMUM_GRACE_SECONDS if grace is None else max(grace, MINIMUM_GRACE_SECONDS)
    wanted_volumes = sidecar_volumes(volumes, settings, mode)
    return [
        *_propagation(pod, {volume.name for volume in volumes}),
        *_init_containers(pod, sidecar_container(pod, volumes, wanted_grace, settings, mode)),
        *_volumes(pod, wanted_volumes),
        *_pull_secrets(pod, settings.pull_secrets),
        *([] if grace == wanted_grace else [_set("/spec/terminationGracePeriodSeconds", wanted_grace)]),
        *_metadata(pod, "labels", names.INJECTED_LABEL, "true"),
        *_annotations(pod, wanted_volumes),
    ]


def is_control_volume(volume: JsonObject, driver: str) -> bool:
    """Whether an entry of `spec.volumes` shows its pod the control directory."""
    csi = volume.get("csi") or {}
    attributes = csi.get("volumeAttributes") or {}
    return csi.get("driver") == driver and attributes.get(names.CONTROL_KIND_ATTRIBUTE) == names.CONTROL_KIND


def _refuse_impossible(pod: JsonObject, settings: Settings) -> None:
    spec = pod["spec"]
    if spec.get("hostUsers") is False:
        raise InjectionRefused(
            "the pod asks for a user namespace of its own (spec.hostUsers: false), in which the JuiceFS sidecar cannot "
            "mount; remove hostUsers or the JuiceFS volumes"
        )
    if any(container.get("name") == names.SIDECAR_CONTAINER for container in spec.get("containers") or []):
        raise InjectionRefused(
            f"the pod has a container of its own named {names.SIDECAR_CONTAINER}, the name of the JuiceFS sidecar; "
            "rename the container"
        )
    for volume in spec.get("volumes") or []:
        name = volume.get("name")
        control = is_control_volume(volume, settings.driver)
        taken = (name == names.CONTROL_VOLUME and not control) or (name in _OWN_EMPTY and "emptyDir" not in volume)
        if taken or (CACHE_VOLUME.fullmatch(name or "") and not any(kind in volume for kind in _CACHE_KINDS)):
            raise InjectionRefused(
                f"the pod has a volume of its own named {name}, which the JuiceFS sidecar needs; rename the volume"
            )
        if control and name != names.CONTROL_VOLUME:
            raise InjectionRefused(
                f"volume {name} is a control volume of the driver {settings.driver} (kind: control), which only the "
                "injected sidecar may have; remove it"
            )
    for container in _application_containers(pod):
        if any(mount.get("name") == names.CONTROL_VOLUME for mount in container.get("volumeMounts") or []):
            raise InjectionRefused(
                f"container {container.get('name')} mounts the volume {names.CONTROL_VOLUME}, over which the JuiceFS "
                "sidecar receives its credentials; remove the mount"
            )


def _application_containers(pod: JsonObject) -> Iterator[JsonObject]:
    spec = pod["spec"]
    yield from spec.get("containers") or []
    yield from (each for each in spec.get("initContainers") or [] if each.get("name") != names.SIDECAR_CONTAINER)


def _propagation(pod: JsonObject, ours: set[str]) -> Iterator[JsonObject]:
    """HostToContainer on the application's mounts: so that a mount made or renewed later reaches them."""
    for group in ("containers", "initContainers"):
        for position, container in enumerate(pod["spec"].get(group) or []):
            if container.get("name") == names.SIDECAR_CONTAINER:
                continue
            for index, mount in enumerate(container.get("volumeMounts") or []):
                if mount.get("name") not in ours or mount.get("mountPropagation") in (
                    "HostToContainer",
                    "Bidirectional",
                ):
                    continue
                # The API server refuses propagation together with recursively read-only mounts.
                if mount.get("recursiveReadOnly") in ("Enabled", "IfPossible"):
                    continue
                yield _set(f"/spec/{group}/{position}/volumeMounts/{index}/mountPropagation", "HostToContainer")


def _init_containers(pod: JsonObject, wanted: JsonObject) -> Iterator[JsonObject]:
    existing = pod["spec"].get("initContainers")
    if not existing:
        yield _set("/spec/initContainers", [wanted])
        return
    positions = [index for index, each in enumerate(existing) if each.get("name") == names.SIDECAR_CONTAINER]
    if not positions:
        yield _set("/spec/initContainers/0", wanted)
        return
    converged = _converged(existing[positions[0]], wanted)
    if positions == [0]:
        if existing[0] != converged:
            yield {"op": "replace", "path": "/spec/initContainers/0", "value": converged}
        return
    for index in reversed(positions):
        yield {"op": "remove", "path": f"/spec/initContainers/{index}"}
    yield _set("/spec/initContainers/0", converged)


def _converged(existing: JsonObject, wanted: JsonObject) -> JsonObject:
    """The wanted sidecar with what others may have added to an earlier one of ours."""
    converged = dict(wanted)
    for field, key in (("env", "name"), ("volumeMounts", "mountPath")):
        ours = {entry[key]: entry for entry in wanted[field]}
        # In the order found: reordering would be a change each time another webhook sorts differently.
        merged = {entry.get(key): ours.get(entry.get(key), entry) for entry in existing.get(field) or []}
        control_elsewhere = [
            where
            for where, entry in merged.items()
            if field == "volumeMounts" and where not in ours and entry.get("name") in _OWN_VOLUMES
        ]
        for where in control_elsewhere:
            del merged[where]
        converged[field] = list((merged | ours).values())
    resources: JsonObject = {}
    present = existing.get("resources") or {}
    for kind in ("limits", "requests"):
        before = present.get(kind) or {}
        amounts = before | wanted["resources"].get(kind, {})
        amounts = {name: _same_amount(before.get(name), amount) for name, amount in amounts.items()}
        if amounts:
            resources[kind] = amounts
    converged["resources"] = resources
    return converged


_OWN_EMPTY = (TEMPORARY_VOLUME, names.STATE_VOLUME)
_OWN_VOLUMES = (names.CONTROL_VOLUME, *_OWN_EMPTY)
_CACHE_KINDS = ("emptyDir", "hostPath", "persistentVolumeClaim")
# The cluster autoscaler takes no pod away that has data on the node, but for volumes that are named here.
SAFE_TO_EVICT_ANNOTATION = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"


def _same_amount(before: object, wanted: str) -> object:
    """Keep the other way of writing the same amount: the API server turns 1024Mi into 1Gi."""
    try:
        return before if isinstance(before, str) and quantity.parse(before) == quantity.parse(wanted) else wanted
    except ValueError:
        return wanted


def _volumes(pod: JsonObject, wanted: Sequence[JsonObject]) -> Iterator[JsonObject]:
    existing = {volume.get("name"): (index, volume) for index, volume in enumerate(pod["spec"].get("volumes") or [])}
    if not existing:
        yield _set("/spec/volumes", list(wanted))
        return
    for volume in wanted:
        if volume["name"] not in existing:
            yield _set("/spec/volumes/-", volume)
        elif existing[volume["name"]][1] != volume:
            yield {"op": "replace", "path": f"/spec/volumes/{existing[volume['name']][0]}", "value": volume}


def _pull_secrets(pod: JsonObject, wanted: Sequence[str]) -> Iterator[JsonObject]:
    existing = pod["spec"].get("imagePullSecrets") or []
    present = {secret.get("name") for secret in existing}
    missing = [{"name": name} for name in dict.fromkeys(wanted) if name not in present]
    if not existing and missing:
        yield _set("/spec/imagePullSecrets", missing)
        return
    for secret in missing:
        yield _set("/spec/imagePullSecrets/-", secret)


def _annotations(pod: JsonObject, volumes: Sequence[JsonObject]) -> Iterator[JsonObject]:
    existing = pod["metadata"].get("annotations") or {}
    local = [volume["name"] for volume in volumes if "emptyDir" in volume or "hostPath" in volume]
    named = [name for name in str(existing.get(SAFE_TO_EVICT_ANNOTATION) or "").split(",") if name]
    wanted = {
        names.INJECTED_ANNOTATION: PATCH_VERSION,
        SAFE_TO_EVICT_ANNOTATION: ",".join(dict.fromkeys([*named, *local])),
    }
    if not existing:
        yield _set("/metadata/annotations", wanted)
        return
    for key, value in wanted.items():
        yield from _metadata(pod, "annotations", key, value)


def _metadata(pod: JsonObject, field: str, key: str, value: str) -> Iterator[JsonObject]:
    existing = pod["metadata"].get(field)
    if not existing:
        yield _set(f"/metadata/{field}", {key: value})
    elif existing.get(key) != value:
        yield _set(f"/metadata/{field}/{key.replace('~', '~0').replace('/', '~1')}", value)


def _set(path: str, value: object) -> JsonObject:
    # RFC 6902 §4.1: "add" replaces an existing member, so that an explicit null needs no other operation.
    return {"op": "add", "path": path, "value": value}
