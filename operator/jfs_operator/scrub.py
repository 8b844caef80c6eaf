"""Takes secrets out of texts before they reach a condition, an event, an annotation or a log line.

Two nets: every secret value that a reconcile has resolved is learned and replaced wherever it occurs, and any `user:password@`
in a URL loses its password even if it was never learned. The log formatter and the status writer both pass through here.
Invariant: learned values exist only in this object's memory. Thread-safe: readers take a snapshot of an immutable tuple.
"""

import re
import threading
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote

MASK: Final = "***"
# Shorter texts occur everywhere by chance; a password of one or two letters protects nothing.
_SHORTEST: Final = 3
_URL: Final = re.compile(r"(?<=://)([^\s:/@]*):([^\s@]+)@")


class Scrubber:
    """Knows the secrets of each owner (any hashable) and masks them in texts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owners: dict[object, frozenset[str]] = {}
        self._longest_first: tuple[str, ...] = ()

    def learn(self, owner: object, secrets: Iterable[str]) -> None:
        """Replace what is known of `owner`. Multi-line secrets (keys) are also masked line by line."""
        known: set[str] = set()
        for secret in secrets:
            known |= {secret, quote(secret, safe=""), unquote(secret)}
            known |= set(secret.splitlines())
        with self._lock:
            self._owners[owner] = frozenset(text for text in known if len(text) >= _SHORTEST)
            self._rebuild()

    def forget(self, owner: object) -> None:
        with self._lock:
            self._owners.pop(owner, None)
            self._rebuild()

    def clean(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._longest_first:
            if secret in text:
                text = text.replace(secret, MASK)
        return _URL.sub(rf"\1:{MASK}@", text)

    def _rebuild(self) -> None:
        every = {text for secrets in self._owners.values() for text in secrets}
        self._longest_first = tuple(sorted(every, key=lambda text: (-len(text), text)))
