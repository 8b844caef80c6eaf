"""Our own FUSE host: the protocol of linux/fuse.h spoken directly on /dev/fuse.

`protocol` packs and unpacks, `mounting` attaches the mountpoint, `session` negotiates INIT, `host` reads and answers.
"""
