"""Values given plainly or by reference: the fields that a JuiceFSSecret and a JuiceFSVolume's `fileSystem` share.

A field is `{value: …}` or `{valueFrom: {secretKeyRef: {name, key}}}`; what is secret has no `value`. `resolve` turns the fields
into values under JuiceFS CSI's keys once the Secrets they name were read. Pure functions.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jfs_api.credentials import Credentials, CredentialsError, decode_secret


class _Model(BaseModel):
    # Fields of a newer schema are not ours to refuse; the API server prunes what its schema does not know.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True)


class SecretKeyRef(_Model):
    name: str
    key: str


class ValueFrom(_Model):
    secret_key_ref: SecretKeyRef = Field(alias="secretKeyRef")


class Reference(_Model):
    """A value that is only referred to."""

    value_from: ValueFrom = Field(alias="valueFrom")


class PlainOrReference(_Model):
    """A value that is not secret, or a reference."""

    value: str | None = None
    value_from: ValueFrom | None = Field(None, alias="valueFrom")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.value is None) == (self.value_from is None):
            raise ValueError("give exactly one of value and valueFrom")
        return self


class FileSystemFields(_Model):
    """The fields of `spec.fileSystem` of a JuiceFSVolume."""

    name: PlainOrReference
    meta_url: PlainOrReference = Field(alias="metaURL")
    storage: PlainOrReference | None = None
    bucket: PlainOrReference | None = None
    access_key: PlainOrReference | None = Field(None, alias="accessKey")
    secret_key: Reference | None = Field(None, alias="secretKey")
    token: Reference | None = None


class JuiceFSSecretSpec(FileSystemFields):
    """The fields of a JuiceFSSecret's spec: those of a file system and the rest of the Secret's keys."""

    format_options: PlainOrReference | None = Field(None, alias="formatOptions")
    envs: Reference | None = None
    encrypt_rsa_key: Reference | None = Field(None, alias="encryptRSAKey")
    passphrase: Reference | None = None


# Attribute of the model -> key of JuiceFS CSI's Secret.
_KEYS: Mapping[str, str] = {
    "name": "name",
    "meta_url": "metaurl",
    "storage": "storage",
    "bucket": "bucket",
    "access_key": "access-key",
    "secret_key": "secret-key",
    "token": "token",
    "format_options": "format-options",
    "envs": "envs",
    "encrypt_rsa_key": "encrypt_rsa_key",
    "passphrase": "passphrase",
}


def secret_names(fields: FileSystemFields) -> frozenset[str]:
    """The Secrets that must be read to know all values."""
    return frozenset(ref.name for _, ref in _references(fields))


def resolve(fields: FileSystemFields, secrets: Mapping[str, Mapping[str, str] | None]) -> Credentials:
    """The credentials; `secrets` maps the names of `secret_names` to their `data`, None for one that does not exist.

    Raises CredentialsError with reason SecretNotFound or KeyMissing when a reference leads nowhere, and as `Credentials` does.
    """
    values: dict[str, str] = {}
    references = dict(_references(fields))
    for attribute, key in _KEYS.items():
        field = getattr(fields, attribute, None)
        if field is None:
            continue
        if key not in references:
            values[key] = field.value
            continue
        ref = references[key]
        data = secrets.get(ref.name)
        if data is None:
            raise CredentialsError("SecretNotFound", f"the Secret {ref.name!r} does not exist in this namespace")
        if ref.key not in data:
            raise CredentialsError("KeyMissing", f"the Secret {ref.name!r} has no key {ref.key!r}")
        decoded = decode_secret({key: data[ref.key]})
        values[key] = decoded[key]
    return Credentials.from_values(values)


def _references(fields: FileSystemFields) -> list[tuple[str, SecretKeyRef]]:
    found: list[tuple[str, SecretKeyRef]] = []
    for attribute, key in _KEYS.items():
        field: Any = getattr(fields, attribute, None)
        if field is not None and field.value_from is not None:
            found.append((key, field.value_from.secret_key_ref))
    return found
