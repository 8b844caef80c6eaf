"""What of a mount outlives the process that serves it, in a directory of shared memory maps.

A process that is killed by any signal leaves its stores to mapped files behind, whole and in order: no system call, no flush is
needed to make a handle, an intention or a written byte survive it (they do not survive the machine, and need not).
`records` is the growing table of slots the others are made of, `handle_table` what is open, `journal` which requests are
changing what, `arena` the bytes that were taken from applications and are not in the storage yet, `state_directory` all of
them together. A leaf for all layers: nothing here knows metadata, storage or FUSE.
"""
