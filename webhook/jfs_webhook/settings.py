"""What the injection is told by the command line: one frozen record, read by everything, changed by nothing.

Invariant: a Settings that exists is usable (the default resources have been parsed), so that no admission can fail on
a setting.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from jfs_api import names

# A decoded JSON object of the Kubernetes API. Its shape is checked where it enters (review.py, api.py).
JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the injection; times and ports of the server are not among them."""

    sidecar_image: str
    pull_policy: str = "IfNotPresent"
    # Names of pull Secrets, in the pods' own namespaces, that the sidecar's image needs.
    pull_secrets: tuple[str, ...] = ()
    driver: str = names.DRIVER
    # The sidecar's resources for each volume that does not name its own.
    default_resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    # Classes that are ours even if no StorageClass object says so (claims may name a class that does not exist).
    storage_classes: frozenset[str] = frozenset()
    # Of sidecars whose volumes name none: privileged, restricted or auto.
    default_mode: str = names.AUTO
    # Never injected, whatever the webhook configuration's selectors say.
    protected_namespaces: frozenset[str] = frozenset({"kube-system"})
