"""POSIX semantics as coroutines on one attempt of a transaction (format §5).

Each takes a `Tx`, a `Caller`, the `Rules` in force, and every time, id and random number it needs; it reads in as few batches as
possible (each is a round trip), decides, buffers its writes and returns a record of what changed. Nothing here does I/O of its
own, keeps state, or knows sessions, caches and engines: that is `meta.volume`.
"""
