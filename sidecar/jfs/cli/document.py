"""The JSON document that programs give on standard input (`--stdin`): addresses and secrets that must not be in a command line.

Its keys are those of JuiceFS CSI's Secret: metaurl, name, storage, bucket, access-key, secret-key, token, format-options
(`k=v,flag,…`), envs (an object, or its JSON text), encrypt_rsa_key, passphrase; and the command's own (uuid, path, force,
check). Other keys of a Secret are not for us and are left alone. Nothing here prints a value.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from jfs.errors import ConfigError
from jfs.format.setting import Setting
from jfs.object.base import ObjectStorage
from jfs.object.connect import for_volume, open_storage, open_volume


@dataclass(frozen=True, slots=True)
class Document:
    """What was given; empty where nothing was."""

    metaurl: str = field(repr=False)
    name: str = ""
    storage: str = ""
    bucket: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    format_options: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    encrypt_rsa_key: str = field(default="", repr=False)
    passphrase: str = field(default="", repr=False)
    uuid: str = ""
    path: str = ""
    force: bool = False
    check: tuple[str, ...] = ("metadata", "storage")

    def storage_options(self) -> list[tuple[str, str | None]]:
        """Storage and credentials, as far as given, as options of `format`."""
        pairs = {
            "storage": self.storage,
            "bucket": self.bucket,
            "access-key": self.access_key,
            "secret-key": self.secret_key,
            "session-token": self.session_token,
        }
        return [(name, value) for name, value in pairs.items() if value]

    def open_volume(self, setting: Setting, *, names_only: bool = False) -> ObjectStorage:
        """The objects of the volume of *setting*, with what the document gives in place of what the setting has; *names_only* as that of
        `jfs.object.connect.open_volume`."""
        return open_volume(
            setting,
            storage=self.storage,
            bucket=self.bucket,
            access_key=self.access_key,
            secret_key=self.secret_key,
            session_token=self.session_token,
            passphrase=self.passphrase,
            names_only=names_only,
        )

    def open_storage(self) -> ObjectStorage:
        """The storage that the document itself describes, below its volume's name when it has one."""
        opened = open_storage(
            self.storage or "file",
            self.bucket,
            access_key=self.access_key,
            secret_key=self.secret_key,
            session_token=self.session_token,
        )
        return for_volume(opened, self.name) if self.name else opened


def read() -> Document:
    """The document on standard input, its `envs` put into this process's environment. ConfigError says what is wrong with it."""
    return parse(sys.stdin.read())


def parse(text: str) -> Document:
    """As `read`, from *text*."""
    try:
        members = json.loads(text)
    except ValueError:
        raise ConfigError("standard input holds no JSON document") from None
    if not isinstance(members, dict):
        raise ConfigError("the JSON document on standard input must be an object")
    envs = _envs(members.get("envs"))
    metaurl = _text(members, "metaurl")
    if not metaurl:
        raise ConfigError("the document has no metaurl, the address of the metadata")
    password = envs.pop("META_PASSWORD", "") or envs.pop("REDIS_PASSWORD", "")
    for option, variable in (("access-key", "ACCESS_KEY"), ("secret-key", "SECRET_KEY"), ("token", "SESSION_TOKEN")):
        if given := envs.pop(variable, ""):
            members[option] = members.get(option) or given
    passphrase = envs.pop("JFS_RSA_PASSPHRASE", "")
    key = _text(members, "encrypt_rsa_key")
    os.environ.update(envs)
    return Document(
        metaurl=metaurl,
        name=_text(members, "name"),
        storage=_text(members, "storage"),
        bucket=_text(members, "bucket"),
        access_key=_text(members, "access-key"),
        secret_key=_text(members, "secret-key"),
        session_token=_text(members, "token"),
        format_options=_text(members, "format-options"),
        password=password,
        encrypt_rsa_key=key + "\n" if key else "",
        passphrase=_text(members, "passphrase") or passphrase,
        uuid=_text(members, "uuid"),
        path=_text(members, "path"),
        force=members.get("force") is True,
        check=_checks(members.get("check")),
    )


def _text(members: dict[str, Any], key: str) -> str:
    value = members.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{key} in the document must be a text")
    return value.strip()


def _envs(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError:
            raise ConfigError("envs in the document must be a JSON object of texts") from None
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str | int | float) for item in value.values()):
        raise ConfigError("envs in the document must be a JSON object of texts")
    return {str(name): str(item) for name, item in value.items()}


def _checks(value: Any) -> tuple[str, ...]:
    if value is None:
        return ("metadata", "storage")
    if not isinstance(value, list) or not set(map(str, value)) <= {"metadata", "storage"}:
        raise ConfigError("check in the document must be a list of metadata and storage")
    return tuple(map(str, value))
