"""A mounted volume's metadata: caches, ids, open files, sessions, trash, background jobs, over `meta.operations`.

What others use:

    meta = await Meta.load(store, MetaOptions(…), delete_objects=blocks.delete_slice, info=SessionInfo(mount_point=…))
    await meta.start_session(); …; await meta.close_session(); await meta.close()          # close() closes the store too
    meta.on_lost(VolumeError), meta.on_entry_changed(parent, name), meta.on_inode_changed(ino): callbacks, may be None

Inode 1 is the mount's root everywhere (also with a subdirectory). Virtual files of the root are the file system layer's;
`.trash` is found by lookup but not listed. `jobs()` gives the background jobs to run by hand.
"""

from jfs.meta.operations.access import SUPERUSER, Caller
from jfs.meta.operations.attributes import NOW, AttrChange
from jfs.meta.operations.renaming import EXCHANGE, NOREPLACE
from jfs.meta.volume.lifecycle import FormatResult, destroy, existing_setting, format_volume, status
from jfs.meta.volume.meta import Meta
from jfs.meta.volume.options import MetaOptions, SessionInfo, StatFS
from jfs.meta.volume.session import load_setting

__all__ = [
    "EXCHANGE",
    "NOREPLACE",
    "NOW",
    "SUPERUSER",
    "AttrChange",
    "Caller",
    "FormatResult",
    "Meta",
    "MetaOptions",
    "SessionInfo",
    "StatFS",
    "destroy",
    "existing_setting",
    "format_volume",
    "load_setting",
    "status",
]
