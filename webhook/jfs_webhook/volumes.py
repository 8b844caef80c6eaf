"""The record that resolution hands to injection: one volume of the pod that our driver will publish. Pure.

What a volume wishes for the sidecar comes from the annotation `juicefs.io/sidecar` (the `spec.sidecar` of its
JuiceFSVolume as JSON). The annotation is other people's text: a malformed one costs its author the defaults and a
warning, never the pod. Image, mode and cache are believed only from cluster-scoped PersistentVolumes and from
JuiceFSVolumes, not from claims, because the image may run privileged and claims are written by whoever may use storage.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from jfs_api import names

from jfs_webhook.quantity import parse

# {"requests": {"cpu": "100m"}, "limits": {...}}
Resources: TypeAlias = Mapping[str, Mapping[str, str]]


MODES = (names.PRIVILEGED, names.RESTRICTED, names.AUTO)


class BadWish(ValueError):
    """A `spec.sidecar` that cannot be used; the message is one sentence without its origin."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What one volume asks of the sidecar; None where it leaves the choice to the defaults."""

    image: str | None = None
    resources: Resources | None = None
    # privileged, restricted or auto
    mode: str | None = None
    # The volume source of the cache directories, as JSON: emptyDir, hostPath or persistentVolumeClaim
    cache: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PodVolume:
    """A volume of the pod that our driver publishes."""

    # Its name in `spec.volumes`.
    name: str
    # The claim or inline volume behind it: two volumes of one claim are one mount and count once.
    source: str
    wish: Wish = Wish()
    # Of its mount options; each is to be a volume of the sidecar.
    cache_directories: tuple[str, ...] = ()


def parse_resources(value: Any) -> Resources:
    """Check resources that come as JSON (requests and limits only). Raises BadWish."""
    if not isinstance(value, dict):
        raise BadWish("resources must be an object with requests and limits")
    checked: dict[str, dict[str, str]] = {}
    for kind, amounts in value.items():
        if kind not in ("requests", "limits"):
            raise BadWish(f"resources has the unknown field {kind!r:.60}; only requests and limits are used")
        if not isinstance(amounts, dict):
            raise BadWish(f"resources.{kind} must be an object of quantities")
        for resource, amount in amounts.items():
            text = str(amount) if isinstance(amount, int | float) and not isinstance(amount, bool) else amount
            if not isinstance(text, str):
                raise BadWish(f"resources.{kind}.{resource:.60} must be a quantity such as 500m or 1Gi")
            try:
                negative = parse(text) < 0
            except ValueError as error:
                raise BadWish(f"resources.{kind}.{resource:.60}: {error}") from error
            if negative:
                raise BadWish(f"resources.{kind}.{resource:.60} must not be negative")
            checked.setdefault(kind, {})[resource] = text
    return checked


def parse_wish(value: Any) -> Wish:
    """Read a decoded `spec.sidecar`. Raises BadWish."""
    if not isinstance(value, dict):
        raise BadWish("it must be an object with image and resources")
    image = value.get("image")
    if image is not None and not isinstance(image, str):
        raise BadWish("image must be a string")
    mode = value.get("mode")
    if mode is not None and mode not in MODES:
        raise BadWish(f"mode must be one of {', '.join(MODES)}")
    resources, cache = value.get("resources"), value.get("cache")
    return Wish(
        image or None,
        None if resources is None else parse_resources(resources),
        mode,
        None if cache is None else _parse_cache(cache),
    )


def _parse_cache(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise BadWish("cache must have exactly one of emptyDir, hostPath and persistentVolumeClaim")
    [(kind, source)] = value.items()
    source = source or {}
    if kind not in ("emptyDir", "hostPath", "persistentVolumeClaim") or not isinstance(source, dict):
        raise BadWish("cache must be an object with emptyDir, hostPath or persistentVolumeClaim")
    if kind == "persistentVolumeClaim" and not isinstance(source.get("claimName"), str):
        raise BadWish("cache.persistentVolumeClaim.claimName must be a string")
    if kind == "hostPath":
        path = source.get("path", "/x")
        if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/"):
            raise BadWish("cache.hostPath.path must be an absolute path")
    if kind == "emptyDir":
        source = {name: source[name] for name in ("medium", "sizeLimit") if source.get(name)}
    return {kind: source}


def annotated_wish(annotations: Any) -> Wish:
    """The wish in an object's annotations; an empty one if there is none. Raises BadWish."""
    text = annotations.get(names.SIDECAR_ANNOTATION) if isinstance(annotations, dict) else None
    if text is None:
        return Wish()
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadWish("it is not valid JSON") from error
    return parse_wish(value)
