"""Engine `memory`: the records as Python objects. For tests and trials; it obeys the same contract as the databases."""

from jfs.meta.engines.memory.database import MemoryDatabase
from jfs.meta.engines.memory.store import MemoryStore

__all__ = ["MemoryDatabase", "MemoryStore"]
