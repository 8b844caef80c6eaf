"""`jfs sidecar` and `jfs ready`: the client's side of a pod.

The supervisor connects to the node service's control socket, is told which volumes to mount, runs one worker process
(`jfs worker`, the client proper) for each and restarts nothing by itself: a new attach comes from the node service.
`frames` is the codec, `volumes` the state machine, `worker` a child process, `supervisor` the loop that ties them
together, `ready` the startup probe.

Standard library only, and as little of it as possible: the supervisor lives in every pod beside the workers, and the
probe starts every second.
"""
