"""From a pod's `spec.volumes` to the ones our driver will publish, by reading claims, volumes and classes.

Stands between review and injection; the only part of an admission that waits for the network. All volumes are looked
up at once. Nothing is an error that a user may yet complete: a claim that does not exist is looked for as a
JuiceFSVolume of the same name (the operator makes its claim in a moment), an unbound claim is judged by what it may be
bound to. An API server that cannot be asked is an error (ApiError), for admitting the pod without its sidecar would
break it for good.
Concurrency: one resolution shares nothing with another but the reader's cache.
"""

import asyncio
import re
from dataclasses import dataclass, field, replace
from typing import Protocol

from jfs_api import names
from jfs_api.mount_options import split_mount_options

from jfs_webhook.cache import BadCacheDirectory, directories
from jfs_webhook.inject import is_control_volume
from jfs_webhook.modes import decide
from jfs_webhook.quantity import parse
from jfs_webhook.settings import JsonObject, Settings
from jfs_webhook.volumes import BadWish, PodVolume, Wish, annotated_wish, parse_wish

# RFC 1123 subdomain: anything else cannot be the name of an object (and must not become part of a request path).
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_DEFAULT_CLASS_ANNOTATION = "storageclass.kubernetes.io/is-default-class"


class Reader(Protocol):
    """Read access to the cluster. A get answers None for what does not exist; all raise ApiError otherwise."""

    async def claim(self, namespace: str, name: str) -> JsonObject | None:
        """A PersistentVolumeClaim."""
        ...

    async def persistent_volume(self, name: str) -> JsonObject | None:
        """A PersistentVolume."""
        ...

    async def persistent_volumes(self, selector: str) -> list[JsonObject]:
        """PersistentVolumes that carry the labels of a selector ("" for all)."""
        ...

    async def storage_class(self, name: str) -> JsonObject | None:
        """A StorageClass."""
        ...

    async def storage_classes(self) -> list[JsonObject]:
        """All StorageClasses."""
        ...

    async def namespace(self, name: str) -> JsonObject | None:
        """A Namespace."""
        ...

    async def juicefs_volume(self, namespace: str, name: str) -> JsonObject | None:
        """A JuiceFSVolume."""
        ...


@dataclass(slots=True)
class Resolution:
    """The pod's volumes of our driver, in its order, and what its author should be told."""

    volumes: list[PodVolume] = field(default_factory=list[PodVolume])
    mode: str = names.PRIVILEGED
    warnings: list[str] = field(default_factory=list[str])


async def resolve(pod: JsonObject, namespace: str, reader: Reader, settings: Settings) -> Resolution:
    """Find the pod's volumes of our driver and the mode of their sidecar. Raises ApiError if the cluster cannot be asked, and
    ModeRefused."""
    resolver = _Resolver(namespace, reader, settings)
    found = await asyncio.gather(*(resolver.volume(volume) for volume in pod["spec"].get("volumes") or []))
    volumes = [volume for volume in found if volume is not None]
    images = list(dict.fromkeys(volume.wish.image for volume in volumes if volume.wish.image))
    if len(images) > 1:
        resolver.warnings.append(
            f"the pod's volumes ask for different sidecar images ({', '.join(images)}); the first one is used"
        )
    if volumes and pod["spec"].get("hostNetwork") and pod["spec"].get("dnsPolicy", "ClusterFirst") == "ClusterFirst":
        resolver.warnings.append(
            "the pod uses the node's network and with dnsPolicy ClusterFirst the node's DNS, in which names of Services do not "
            "exist; if the volume's database or storage is a Service, set dnsPolicy: ClusterFirstWithHostNet"
        )
    mode = names.PRIVILEGED
    if volumes:
        mode, warnings = decide(volumes, settings.default_mode, await reader.namespace(namespace))
        resolver.warnings += warnings
    return Resolution(volumes, mode, sorted(set(resolver.warnings)))


class _Resolver:
    """One pod's resolution."""

    def __init__(self, namespace: str, reader: Reader, settings: Settings) -> None:
        self._namespace = namespace
        self._reader = reader
        self._settings = settings
        self.warnings: list[str] = []

    async def volume(self, volume: JsonObject) -> PodVolume | None:
        name = volume["name"]
        csi, claim, ephemeral = volume.get("csi"), volume.get("persistentVolumeClaim"), volume.get("ephemeral")
        if csi is not None:
            ours = csi.get("driver") == self._settings.driver and not is_control_volume(volume, self._settings.driver)
            return PodVolume(name, f"inline/{name}") if ours else None
        if claim is not None:
            found = await self._claim(claim["claimName"])
            if found is None:
                return None
            wish, options = found
            return PodVolume(name, f"claim/{claim['claimName']}", wish, self._cache_directories(wish, options, name))
        template = (ephemeral or {}).get("volumeClaimTemplate")
        if template is not None and await self._is_our_class((template.get("spec") or {}).get("storageClassName")):
            return PodVolume(name, f"ephemeral/{name}", self._claim_wish(template.get("metadata") or {}, name))
        return None

    async def _claim(self, name: str) -> tuple[Wish, list[str]] | None:
        """The claim's wish and mount options, as far as they are known, if it is ours."""
        if _OBJECT_NAME.fullmatch(name) is None:
            return None
        claim = await self._reader.claim(self._namespace, name)
        if claim is None:
            return await self._future_claim(name)
        metadata, spec = claim.get("metadata") or {}, claim.get("spec") or {}
        wish = self._claim_wish(metadata, name)
        bound_to = spec.get("volumeName")
        persistent_volume = await self._reader.persistent_volume(bound_to) if bound_to else None
        if persistent_volume is not None:
            if not self._is_our_volume(persistent_volume):
                return None
            of_volume = self._wish(persistent_volume.get("metadata") or {}, f"PersistentVolume {bound_to}")
            options = _mount_options(persistent_volume.get("spec") or {})
            return replace(of_volume, resources=wish.resources or of_volume.resources), options
        if names.VOLUME_ANNOTATION in (metadata.get("annotations") or {}):
            return wish, []
        if await self._is_our_class(spec.get("storageClassName"), default=False):
            return wish, []
        if not bound_to and await self._may_bind_to_ours(name, spec):
            return wish, []
        return None

    async def _future_claim(self, name: str) -> tuple[Wish, list[str]] | None:
        """A claim that does not exist yet is ours if a JuiceFSVolume of its name is going to make it."""
        custom = await self._reader.juicefs_volume(self._namespace, name)
        if custom is None:
            self.warnings.append(
                f"PersistentVolumeClaim {self._namespace}/{name} does not exist; if it will be a JuiceFS volume, make "
                "it (or its JuiceFSVolume) before the pod, or the pod has no sidecar"
            )
            return None
        spec = custom.get("spec") or {}
        options = [str(option) for option in spec.get("mountOptions") or []]
        wished = dict(spec.get("sidecar") or {})
        if spec.get("cache") is not None:
            wished["cache"] = spec["cache"]
        try:
            return parse_wish(wished), options
        except BadWish as error:
            self.warnings.append(f"spec.sidecar of JuiceFSVolume {self._namespace}/{name} is ignored: {error}")
            return Wish(), options

    def _cache_directories(self, wish: Wish, options: list[str], name: str) -> tuple[str, ...]:
        try:
            found = directories(options)
        except BadCacheDirectory as error:
            self.warnings.append(f"volume {name} has no disk cache: {error}")
            return ()
        return found or ((names.CACHE_DIRECTORY,) if wish.cache is not None else ())

    async def _is_our_class(self, name: str | None, *, default: bool = True) -> bool:
        """Whether claims of the class are provisioned by us; `default`: no name means the cluster's default class."""
        if name is None and default:
            return any(
                each.get("provisioner") == self._settings.driver
                for each in await self._reader.storage_classes()
                if ((each.get("metadata") or {}).get("annotations") or {}).get(_DEFAULT_CLASS_ANNOTATION) == "true"
            )
        if not name or _OBJECT_NAME.fullmatch(name) is None:
            return False
        if name in self._settings.storage_classes:
            return True
        storage_class = await self._reader.storage_class(name)
        return storage_class is not None and storage_class.get("provisioner") == self._settings.driver

    async def _may_bind_to_ours(self, name: str, spec: JsonObject) -> bool:
        """Whether an unbound claim is going to be bound to a PersistentVolume of ours.

        JuiceFS CSI's documented static volumes are bound by labels, after the pod has been admitted. A volume that
        waits for this claim decides; otherwise all that fit must be ours, for a sidecar without a volume never starts.
        """
        selector = label_selector(spec.get("selector") or {})
        if selector is None:
            return False
        fitting: list[bool] = []
        for volume in await self._reader.persistent_volumes(selector):
            holder = (volume.get("spec") or {}).get("claimRef")
            if holder is not None and (holder.get("namespace"), holder.get("name")) == (self._namespace, name):
                return self._is_our_volume(volume)
            if holder is None and _fits(volume.get("spec") or {}, spec):
                fitting.append(self._is_our_volume(volume))
        if any(fitting) and not all(fitting):
            self.warnings.append(
                f"PersistentVolumeClaim {self._namespace}/{name} is not bound and fits volumes of several drivers, so "
                "the pod gets no JuiceFS sidecar for it; name its volume (spec.volumeName), or make the pod when it is bound"
            )
        return bool(fitting) and all(fitting)

    def _is_our_volume(self, volume: JsonObject) -> bool:
        return ((volume.get("spec") or {}).get("csi") or {}).get("driver") == self._settings.driver

    def _claim_wish(self, metadata: JsonObject, name: str) -> Wish:
        # Resources only: whoever may write claims must not choose what runs privileged.
        return Wish(None, self._wish(metadata, f"PersistentVolumeClaim {self._namespace}/{name}").resources)

    def _wish(self, metadata: JsonObject, origin: str) -> Wish:
        try:
            return annotated_wish(metadata.get("annotations"))
        except BadWish as error:
            self.warnings.append(f"annotation {names.SIDECAR_ANNOTATION} of {origin} is ignored: {error}")
            return Wish()


def _mount_options(spec: JsonObject) -> list[str]:
    """Of a PersistentVolume: its own, and those that JuiceFS CSI's users write as a volume attribute."""
    attributes = (spec.get("csi") or {}).get("volumeAttributes") or {}
    options = [str(option) for option in spec.get("mountOptions") or []]
    return [*options, *split_mount_options(str(attributes.get("mountOptions") or ""))]


def _fits(volume: JsonObject, claim: JsonObject) -> bool:
    """Whether the control plane could bind the claim to the volume: class, access modes and size."""
    wanted = ((claim.get("resources") or {}).get("requests") or {}).get("storage", "0")
    try:
        large_enough = parse(str((volume.get("capacity") or {}).get("storage", "0"))) >= parse(str(wanted))
    except ValueError:
        return False
    return (
        large_enough
        and (volume.get("storageClassName") or "") == (claim.get("storageClassName") or "")
        and set(claim.get("accessModes") or []) <= set(volume.get("accessModes") or [])
    )


def label_selector(selector: JsonObject) -> str | None:
    """A claim's selector as the API's query text; "" selects everything, None means it cannot be expressed."""
    terms = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or []:
        key, values = expression.get("key"), ",".join(expression.get("values") or [])
        match expression.get("operator"):
            case "In":
                terms.append(f"{key} in ({values})")
            case "NotIn":
                terms.append(f"{key} notin ({values})")
            case "Exists":
                terms.append(f"{key}")
            case "DoesNotExist":
                terms.append(f"!{key}")
            case _:
                return None
    return ",".join(terms)
