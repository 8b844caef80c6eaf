"""Blocks kept on this machine: the disk cache and the staged blocks of writeback, in the real client's layout (format §6.7, §6.8).

Place in the flow: `chunk.blocks` asks here before the object storage, and stores here what it fetched; nothing here knows objects or
metadata. What a mount makes: `DiskCache(options, uuid, …)` or `MemoryCache(size)`, and with writeback a `Staging` over the former.

Modules: `options.py`, `layout.py` (paths and names), `checksum.py` (trailers), `ring.py` (which directory), `index.py` (what is kept and
what goes), `directory.py` (one directory's files), `disk.py` (the cache; with `pending.py`, `open_blocks.py` and, for its threads,
`work.py`), `memory.py` (the same in RAM), `staging.py` (writeback), `counters.py`, `interface.py`.
"""
