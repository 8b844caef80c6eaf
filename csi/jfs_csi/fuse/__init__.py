"""FUSE connections on the node: `init` (what is agreed with the kernel), `device` (descriptors of /dev/fuse), `mounting`
(mounts that the node service makes itself, restricted mode), `keeper` (a descriptor of every connection, so that it
survives its sidecar) and `holder` (a process with duplicates, so that it survives the node service too).
"""
