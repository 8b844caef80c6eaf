"""Secrets that people give in the environment (the real client's variables), taken out of it so that no child inherits them."""

import os
from typing import Final

from jfs.errors import ConfigError

SECRET_VARIABLES: Final = (
    *("META_PASSWORD", "REDIS_PASSWORD", "ACCESS_KEY", "SECRET_KEY", "SESSION_TOKEN"),
    "JFS_RSA_PASSPHRASE",
)


def take_meta_password() -> str:
    """The database's password: META_PASSWORD, the file named by META_PASSWORD_FILE, or REDIS_PASSWORD; "" when there is none."""
    password = os.environ.pop("META_PASSWORD", "")
    path = os.environ.pop("META_PASSWORD_FILE", "")
    old = os.environ.pop("REDIS_PASSWORD", "")
    if password or not path:
        return password or old
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"the file {path} of META_PASSWORD_FILE cannot be read: {reason}") from error


def take_rsa_passphrase() -> str:
    """The passphrase of an encrypted volume's private key: JFS_RSA_PASSPHRASE; "" when there is none."""
    return os.environ.pop("JFS_RSA_PASSPHRASE", "")


def take_storage_keys() -> dict[str, str]:
    """access-key, secret-key and session-token as far as ACCESS_KEY, SECRET_KEY and SESSION_TOKEN give them."""
    names = {"access-key": "ACCESS_KEY", "secret-key": "SECRET_KEY", "session-token": "SESSION_TOKEN"}
    found = {option: os.environ.pop(name, "") for option, name in names.items()}
    return {option: value for option, value in found.items() if value}
