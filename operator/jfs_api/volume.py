"""The specs of JuiceFSVolume and JuiceFSSecret as checked records: everything that the API server's schema and CEL rules cannot see.

An object that passed the API server can still contradict itself (a `subdir` beside `subPath`, an unknown mount option); here that
becomes one sentence for a condition. Pure functions.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jfs_api import names
from jfs_api.format_options import merge_format_options
from jfs_api.mount_options import normalize_path, parse_mount_options, subdirectory
from jfs_api.options import OptionError
from jfs_api.quantity import parse_quantity
from jfs_api.sources import FileSystemFields, JuiceFSSecretSpec

READ_ONLY_MANY: Final = "ReadOnlyMany"


class SpecError(ValueError):
    """The spec cannot be fulfilled as it stands; the text is one sentence, only a change of the spec helps."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True)


class SecretRef(_Model):
    kind: Literal["Secret", "JuiceFSSecret"] = "Secret"
    name: str


class Resources(_Model):
    limits: dict[str, str | int] = Field(default_factory=dict)
    requests: dict[str, str | int] = Field(default_factory=dict)


class Sidecar(_Model):
    image: str | None = None
    resources: Resources | None = None
    mode: Literal["privileged", "restricted", "auto"] | None = None
    rollout: Literal["Automatic", "Manual"] | None = None


class EmptyDirectory(_Model):
    medium: str | None = None
    size_limit: str | int | None = Field(None, alias="sizeLimit")


class HostPath(_Model):
    path: str | None = None


class CacheClaim(_Model):
    claim_name: str = Field(alias="claimName")


class Cache(_Model):
    """What the directories of the disk cache are made of: exactly one."""

    empty_dir: EmptyDirectory | None = Field(None, alias="emptyDir")
    host_path: HostPath | None = Field(None, alias="hostPath")
    persistent_volume_claim: CacheClaim | None = Field(None, alias="persistentVolumeClaim")


class JuiceFSVolumeSpec(_Model):
    """A JuiceFSVolume's spec. Build it with `parse_volume_spec`."""

    secret_ref: SecretRef | None = Field(None, alias="secretRef")
    file_system: FileSystemFields | None = Field(None, alias="fileSystem")
    format_options: dict[str, str] = Field(default_factory=dict, alias="formatOptions")
    capacity: str = "10Pi"
    access_modes: list[str] = Field(default_factory=lambda: ["ReadWriteMany"], alias="accessModes", min_length=1)
    sub_path: str | None = Field(None, alias="subPath")
    mount_options: list[str] = Field(default_factory=list, alias="mountOptions")
    sidecar: Sidecar = Sidecar()
    cache: Cache | None = None
    reclaim_policy: Literal["Retain", "Delete"] = Field(names.RETAIN, alias="reclaimPolicy")

    @property
    def directory(self) -> str:
        """The directory that is the volume's root, `/` for the whole file system."""
        if self.sub_path:
            return normalize_path(self.sub_path)
        return subdirectory(parse_mount_options(self.mount_options)) or "/"

    def persistent_volume_options(self) -> list[str]:
        """The PersistentVolume's `mountOptions`: those of the spec, the directory, `ro` where no mode allows writing, and where
        the cache is to lie if only its kind is told."""
        options = list(self.mount_options)
        given = {option.name for option in parse_mount_options(options)}
        if self.sub_path:
            options.append(f"subdir={self.directory}")
        if self.access_modes == [READ_ONLY_MANY] and not given & {"ro", "read-only"}:
            options.append("ro")
        if self.cache is not None and "cache-dir" not in given:
            options.append(f"cache-dir={names.CACHE_DIRECTORY}")
        return options

    def sidecar_annotation(self) -> dict[str, Any]:
        """What the webhook needs of `spec.sidecar` and `spec.cache`: only what is set."""
        annotation = self.sidecar.model_dump(exclude_none=True, exclude_defaults=True)
        if self.cache is not None:
            annotation["cache"] = self.cache.model_dump(exclude_none=True, by_alias=True)
        return annotation


def parse_volume_spec(spec: Mapping[str, Any]) -> JuiceFSVolumeSpec:
    """Check a JuiceFSVolume's spec. Raises SpecError."""
    try:
        parsed = JuiceFSVolumeSpec.model_validate(spec)
    except ValidationError as error:
        raise SpecError(_sentence(error)) from None
    if (parsed.secret_ref is None) == (parsed.file_system is None):
        raise SpecError("name the file system by exactly one of secretRef and fileSystem")
    try:
        options = parse_mount_options(parsed.mount_options)
        directory = subdirectory(options)
        if parsed.sub_path and directory is not None and directory != parsed.directory:
            raise SpecError(
                f"subPath {parsed.sub_path!r} and the mount option subdir={directory} contradict each other"
            )
        if parsed.sub_path and directory is not None:
            raise SpecError("give the directory once: subPath or the mount option subdir, not both")
        merge_format_options("", parsed.format_options)
        _ = parsed.directory
    except OptionError as error:
        raise SpecError(str(error)) from None
    if parsed.cache is not None and len(parsed.cache.model_dump(exclude_none=True)) != 1:
        raise SpecError("cache must have exactly one of emptyDir, hostPath and persistentVolumeClaim")
    if parsed.access_modes == [READ_ONLY_MANY] and any(option.name == "rw" for option in options):
        raise SpecError("the mount option rw contradicts accessModes: [ReadOnlyMany]")
    try:
        if parse_quantity(parsed.capacity) <= 0:
            raise SpecError("capacity must be more than nothing")
    except ValueError as error:
        raise SpecError(f"capacity: {error}") from None
    return parsed


def parse_secret_spec(spec: Mapping[str, Any]) -> JuiceFSSecretSpec:
    """Check a JuiceFSSecret's spec. Raises SpecError."""
    try:
        return JuiceFSSecretSpec.model_validate(spec)
    except ValidationError as error:
        raise SpecError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    # The input is left out: a value written into the wrong field may be a secret.
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "spec"
    return f"{place}: {first['msg']}"
