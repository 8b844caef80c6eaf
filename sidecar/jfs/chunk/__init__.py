"""The data path: files as chunks of 64 MiB, slices, blocks and objects (format §6). Knows nothing of metadata engines.

Place in the flow: `vfs` → here → `jfs.object`. The metadata that the data path needs comes through two small protocols
(`jfs.chunk.interfaces`), which `jfs.meta.volume.Meta` satisfies as it is: `SliceSink.new_slice_id/commit_slice` and
`SliceSource.read_slices`.

What a mount makes, once:

    storage = for_volume(open_storage(setting.storage, setting.bucket, …), setting.name)
    blocks  = BlockStore(storage, BlockFormat(block_size=4 << 20, compression="none", hash_prefix=False), BlockLimits(…))
    budget  = Budget(300 << 20)                      # --buffer-size, shared by dirty and read-ahead data
    writer  = Writer(blocks, meta, budget)           # jfs.chunk.writer
    reader  = Reader(blocks, meta, budget, ReadLimits(max_readahead=…))    # jfs.chunk.reader
    Meta.open(…, delete_objects=blocks.delete_slice)

and closes in this order: `await writer.close()` (flushes everything; raises FsError when that fails), `await reader.close()`,
`await blocks.close()` (closes the storage too).

Writing, per open handle:

    w = writer.open(ino)                  FileWriter; handles of one inode share their pending slices. No I/O, not a coroutine
    await w.write(off, data)              data (bytes or memoryview) is copied before it returns; suspends only while the buffer
                                          budget is used up or 1000 slices are pending. FsError(EIO, ENOSPC, EDQUOT, ENOENT …):
                                          an earlier write-back failed; each handle gets each failure once
    await w.flush()                       everything written to this inode so far is uploaded and committed when it returns; FsError
                                          as above. FLUSH and FSYNC are this
    await w.close()                       flush, then forget the handle (RELEASE); FsError as above, the handle is gone all the same
    w.length, writer.length(ino)          end of the furthest byte not committed yet, 0 when nothing is pending: attributes answer
                                          max(attr.length, writer.length(ino))
    writer.is_dirty(ino)                  whether anything of the inode is pending
    await writer.settle(ino)              waits until nothing written before is pending; raises nothing (failures wait for the handles).
                                          Before reading and before answering another handle's getattr after a flush
    async with writer.paused(ino): …      settles, and holds new writes of the inode back meanwhile: truncate, fallocate, copy_file_range
                                          change the metadata inside it
    writer.dirty_bytes                    bytes in buffers not yet committed, of the whole mount
    await writer.flush_all()              flushes every inode (unmount, quiesce); FsError of the first failure

Reading, per open handle:

    r = reader.open(ino)                  FileReader: holds the read-ahead streams of one handle
    await r.read(off, size, length)       bytes [off, min(off+size, length)): a bytes-like object that the caller must not change and
                                          may keep; length is the file's (attr.length); zeros where nothing was written. Pending
                                          writes are not seen: `await writer.settle(ino)` first. FsError(EIO) after all tries
    r.close()
    reader.invalidate(ino)                forgets cached views of the inode (after truncate, or when it is known to have changed).
                                          Own commits need no call: the list that `read_slices` returns decides

A call that needs no I/O completes without suspending. Errors of `read_slices` and `commit_slice` (FsError, StoreError) pass
through `read`, and are kept for the handles by `write`/`flush` (a StoreError as EIO).

Modules: `interfaces.py` (protocols), `naming.py` (object names), `compression.py`, `budget.py`, `rate.py`, `blocks.py` (BlockStore),
`slice_buffer.py`, `writer.py`, `file_writer.py`, `reader.py`, `readahead.py`, `prefetch.py`, `block_cache.py`, `memory.py`;
`local/` (disk cache and writeback).
"""
