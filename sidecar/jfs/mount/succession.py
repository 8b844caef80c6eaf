"""What a mount takes over from a dead predecessor on the same FUSE connection before it serves: session, pending data, held attributes.

Order matters: the dead one's last commands are cut off before anything is looked up or written; the session goes on before data
are committed in it. Handles follow (`jfs.fuse.succession`) once there are handlers. Called once, before the first request.
"""

import logging

from jfs.chunk.writer import Writer
from jfs.fuse.connection import Connection
from jfs.meta.volume import Meta
from jfs.survival.state_directory import StateDirectory

log = logging.getLogger("jfs.mount")


async def begin_session(meta: Meta, state: StateDirectory, connection: Connection | None, writer: Writer) -> None:
    """Start a session, or go on with that of the predecessor. StoreError, VolumeError."""
    sid = state.session(meta.setting.uuid) if connection is not None else 0
    resumes = connection is not None and connection.resume
    if not sid:
        state.clear()
        if resumes:
            log.warning("there is no state of a predecessor: files that were open, and locks, are lost")
    elif resumes and not await meta.store.cut_off(state.presence):
        log.info("the database does not tell whether the predecessor's last commands have come: they are believed to")
    if state.path is not None:
        meta.store.on_presence = state.keep_presence
        state.keep_presence(meta.store.presence())
    await meta.start_session(sid)
    if sid:
        writer.take_over()
    if state.path is not None:
        meta.keep_attrs(state.attributes)
    state.begin(meta.setting.uuid, meta.sid)
