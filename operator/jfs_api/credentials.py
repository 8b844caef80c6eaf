"""The credentials of one file system: the keys of JuiceFS CSI's Secret as a checked record.

Made from a Secret's data or from resolved fields, turned into the document that the `jfs` command reads on standard input and
into the data of a managed Secret. Nothing here ever shows a value: not in `repr`, not in an error. Pure functions.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from jfs_api import names
from jfs_api.format_options import parse_format_options
from jfs_api.options import OptionError

# Format §2.2.
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+]*)://.+", re.DOTALL)
# What lives in one container or on one machine cannot be shared by pods.
_LOCAL_ENGINES: Final = frozenset({"sqlite3", "memory", "mem", "badger"})
_LOCAL_STORAGE: Final = frozenset({"file", "mem", "sqlite3"})
# Keys whose values are secrets or may hold one.
_SECRET_FIELDS: Final = ("metaurl", "secret_key", "token", "encrypt_rsa_key", "passphrase")
_PASSWORD_IN_URL: Final = re.compile(r"://[^@]*?:([^@]+)@")


class CredentialsError(ValueError):
    """The keys do not describe a file system. `reason` is the condition's reason; the text is one sentence without any value."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Credentials(BaseModel):
    """Values by JuiceFS CSI's keys; what is absent is empty. Build it with `from_values`."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str
    metaurl: str = Field(repr=False)
    storage: str = ""
    bucket: str = ""
    access_key: str = Field("", repr=False)
    secret_key: str = Field("", repr=False)
    token: str = Field("", repr=False)
    format_options: str = ""
    envs: dict[str, str] = Field(default_factory=dict, repr=False)
    encrypt_rsa_key: str = Field("", repr=False)
    passphrase: str = Field("", repr=False)

    @classmethod
    def from_values(cls, values: Mapping[str, str]) -> "Credentials":
        """Check the values under the Secret's keys; keys we do not know are left alone. Raises CredentialsError."""
        present = {key: value.strip() for key, value in values.items() if key in names.SECRET_KEYS and value.strip()}
        missing = [key for key in ("name", "metaurl") if key not in present]
        if missing:
            raise CredentialsError(
                "KeyMissing", f"the key{'s' if len(missing) > 1 else ''} {' and '.join(missing)} must be given"
            )
        _check_name(present["name"])
        _check_metadata_url(present["metaurl"])
        _check_storage(present.get("storage", ""))
        try:
            parse_format_options(present.get("format-options", ""))
        except OptionError as error:
            raise CredentialsError("FormatOptionInvalid", f"format-options: {error}") from None
        fields: dict[str, str] = {key.replace("-", "_"): value for key, value in present.items() if key != "envs"}
        return cls.model_validate({**fields, "envs": _parse_environment(present.get("envs", ""))})

    @classmethod
    def from_secret(cls, data: Mapping[str, str]) -> "Credentials":
        """From a Secret's `data` (base64). Raises CredentialsError."""
        return cls.from_values(decode_secret(data))

    def secret_data(self) -> dict[str, str]:
        """The `data` (base64) of the managed Secret: what the node service hands to the sidecar. Empty keys are left out."""
        values = {**self._texts(), "envs": json.dumps(self.envs, sort_keys=True) if self.envs else ""}
        return {key: base64.b64encode(value.encode()).decode() for key, value in values.items() if value}

    def document(self) -> dict[str, object]:
        """What `jfs format|status|destroy|rmr --stdin` reads (without what the single command needs besides). The private key
        is for `format`, which puts it into the volume; the node service needs the passphrase only."""
        texts = {**self._texts(), "encrypt_rsa_key": self.encrypt_rsa_key}
        document: dict[str, object] = {key: value for key, value in texts.items() if value}
        if self.envs:
            document["envs"] = dict(self.envs)
        return document

    def secrets(self) -> frozenset[str]:
        """Every text that must not appear anywhere: secret values, the password in the metadata URL, each variable of `envs`."""
        values = {getattr(self, field) for field in _SECRET_FIELDS} | set(self.envs.values())
        if match := _PASSWORD_IN_URL.search(self.metaurl):
            values.add(match.group(1))
        return frozenset(value for value in values if value)

    def _texts(self) -> dict[str, str]:
        return {
            "name": self.name,
            "metaurl": self.metaurl,
            "storage": self.storage,
            "bucket": self.bucket,
            "access-key": self.access_key,
            "secret-key": self.secret_key,
            "token": self.token,
            "passphrase": self.passphrase,
        }


def decode_secret(data: Mapping[str, str]) -> dict[str, str]:
    """The texts in a Secret's `data`. Raises CredentialsError for a value that is not text."""
    values = {}
    for key, encoded in data.items():
        try:
            values[key] = base64.b64decode(encoded).decode()
        except (binascii.Error, UnicodeDecodeError):
            if key in names.SECRET_KEYS:
                raise CredentialsError("KeyInvalid", f"the key {key} does not hold text") from None
    return values


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CredentialsError(
            "KeyInvalid",
            "name must have 3 to 63 lower-case letters, digits and dashes, and begin and end with a letter or digit",
        )


def _check_metadata_url(url: str) -> None:
    match = _SCHEME.fullmatch(url)
    if match is None:
        raise CredentialsError("KeyInvalid", "metaurl is not a URL like redis://host:6379/1")
    if match.group(1) in _LOCAL_ENGINES:
        raise CredentialsError(
            "LocalEngine", f"metaurl names {match.group(1)}, which lives on one machine; pods need a metadata server"
        )


def _check_storage(storage: str) -> None:
    if storage in _LOCAL_STORAGE:
        raise CredentialsError(
            "LocalStorage", f"storage {storage!r} lives in one container; pods need an object storage like s3"
        )


def _parse_environment(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        parsed = json.loads(text)
    except ValueError:
        raise CredentialsError("KeyInvalid", "envs is not a JSON object") from None
    if not isinstance(parsed, dict) or not all(isinstance(value, str | int | float) for value in parsed.values()):
        raise CredentialsError("KeyInvalid", "envs is not a JSON object of texts")
    return {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in parsed.items()}
