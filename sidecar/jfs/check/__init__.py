"""Examination of a whole volume: what `jfs fsck` and `jfs gc` say, and the invariants that tests end with (format §13).

Place in the flow: between the commands and the record store and object storage; it needs no mount and no session. Order:
`facts` reads everything the database holds, once → `judge` compares what is with what should be, purely → `repair` puts
right what follows from the rest without a guess; `objects` compares the listing of the storage with the slices in use.
Memory: about 0.5 KB for each inode and each slice, nothing for an object. A volume that others write to is examined several times, and only
what is found each time is damage.

    damages = await check(store)                     # [] when the metadata are sound; tests assert that
"""

from jfs.check.damage import Damage
from jfs.check.examination import check, examine

__all__ = ["Damage", "check", "examine"]
