"""One thing that is wrong with a volume: what, where, and what can be done about it. A value, but for the repair that it carries."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from jfs.meta.store.base import Tx

# A repair is an operation of a transaction. It must follow from records that are sound, be harmless when the damage has gone
# meanwhile, and stay right when others write: numbers are corrected by a difference.
Fix: TypeAlias = Callable[[Tx], Awaitable[None]]

# Where a damage is: an inode, an entry (parent, name), or nowhere in the tree.
Place: TypeAlias = int | tuple[int, bytes] | None


@dataclass(frozen=True, slots=True)
class Damage:
    """*kind* is a word of the list in SEMANTICS.md; *text* a sentence in which `{path}` stands for the place. Without a *fix* the
    *remedy* says what a person can do. A *note* is no damage: something that is as it may be, but worth a line."""

    kind: str
    place: Place
    text: str
    fix: Fix | None = None
    remedy: str = ""
    note: bool = False

    @property
    def identity(self) -> tuple[str, Place, str]:
        """The same for the same damage in two examinations."""
        return self.kind, self.place, self.text

    def sentence(self, path: str) -> str:
        """The text for people."""
        return self.text.replace("{path}", path)
