"""Removes credentials from sentences before they become events or log lines.

The sidecar promises not to put secrets into messages; this is the second lock on the same door, because events can be
read by everybody who may read the pod. Pure.
"""

from typing import Any
from urllib.parse import unquote, urlsplit

# Values that name things rather than guard them; a message without them would say nothing.
_PUBLIC_KEYS = frozenset({"name", "storage", "bucket", "metaurl", "format-options"})
# Shorter values ("0", "on") would blank out ordinary words.
_SHORTEST = 4
_MASK = "***"


def redact(text: str, secrets: dict[str, Any] | None) -> str:
    """The text with every credential of the volume's Secret masked: values of keys that are secret, and passwords
    inside the metadata URL, as written and percent-decoded.
    """
    for value in sorted(_credentials(secrets or {}), key=len, reverse=True):
        text = text.replace(value, _MASK)
    return text


def _credentials(secrets: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for key, value in secrets.items():
        if isinstance(value, dict):
            found.update(str(inner) for inner in value.values())
        elif key not in _PUBLIC_KEYS:
            found.add(str(value))
    found |= _passwords(str(secrets.get("metaurl", "")))
    return {value for value in found if len(value) >= _SHORTEST}


def _passwords(url: str) -> set[str]:
    # MySQL's "user:password@(host:port)/db" has no form urlsplit likes, but its userinfo ends at the same '@'.
    try:
        authority = urlsplit(url).netloc
    except ValueError:
        authority = url.partition("://")[2]
    userinfo = authority.rpartition("@")[0]
    password = userinfo.partition(":")[2]
    return {password, unquote(password)} if password else set()
