"""Named memory databases of this process: `memory://name` opened twice is one volume, `memory://` a new one each time."""

from jfs.meta.engines.memory.database import MemoryDatabase
from jfs.meta.engines.memory.store import MemoryStore

_named: dict[str, MemoryDatabase] = {}


def open_named(name: str) -> MemoryStore:
    """A store on the database *name*, made when it is not there yet."""
    if not name:
        return MemoryStore()
    return MemoryStore(_named.setdefault(name, MemoryDatabase()))
