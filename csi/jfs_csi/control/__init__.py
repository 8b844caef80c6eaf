"""The node service's end of the control socket: `frames` (codec), `pod` (state machine) with its `attachment` and `actions`,
`server` (sockets), `sessions` and `connection` (sidecars at the other end), `carrier` (carries actions out), `peer` and
`processes` (who and what lives in the pod). The sidecar's end is an independent implementation in the client; they share
only the protocol.
"""
