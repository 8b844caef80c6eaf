"""What a mount knows beyond metadata and data: open files and directories, virtual files, the access log.

Below the FUSE handlers, above `meta.volume` and `chunk`. Host-neutral: no module here knows the FUSE protocol.
"""
