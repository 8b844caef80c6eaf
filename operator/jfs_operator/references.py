"""Which objects depend on which Secrets and JuiceFSSecrets, so that a change of one brings its dependents back at once.

Filled by reconciles, asked by watch events. Holds names only. Invariant: an owner's entry is what its last reconcile looked at,
also objects that were missing. Used by the event loop's thread alone.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Key(NamedTuple):
    """An object that can be reconciled; `namespace` is empty for PersistentVolumes."""

    kind: str
    namespace: str
    name: str


class Reference(NamedTuple):
    """An object that others refer to."""

    plural: str
    namespace: str
    name: str


class References:
    """A two-way index."""

    def __init__(self) -> None:
        self._of: dict[Key, frozenset[Reference]] = {}
        self._to: dict[Reference, set[Key]] = {}

    def set(self, owner: Key, references: Iterable[Reference]) -> None:
        """Replace what `owner` refers to."""
        self.forget(owner)
        self._of[owner] = frozenset(references)
        for reference in self._of[owner]:
            self._to.setdefault(reference, set()).add(owner)

    def forget(self, owner: Key) -> None:
        for reference in self._of.pop(owner, frozenset()):
            owners = self._to[reference]
            owners.discard(owner)
            if not owners:
                del self._to[reference]

    def knows(self, owner: Key) -> bool:
        """Whether `owner` was reconciled in this life."""
        return owner in self._of

    def dependents(self, reference: Reference) -> frozenset[Key]:
        return frozenset(self._to.get(reference, ()))
