"""`jfs sidecar` and `jfs ready`: the client's side of a pod.

The supervisor connects to the node service's control socket, is told which volumes to serve, and runs one worker process
(`jfs worker`, the client proper) for each. It holds the volumes' FUSE connections, so that a worker that dies is followed by
another one and applications only wait. `frames` is the codec, `volumes` the state machine (with `volume`, `ending`, `actions`),
`worker` a child process, `zygote` what they are forked from, `connections` the descriptors, `supervisor` the loop that ties them
together, `ready` the startup probe and `probe` whom it asks.

Standard library only, and as little of it as possible: the supervisor lives in every pod beside the workers, and the
probe starts every second.
"""
