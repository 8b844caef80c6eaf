"""The node service's end of the control socket: `frames` (codec), `pod` (state machine), `peer` (authentication) and
`server` (sockets). The sidecar's end is an independent implementation in the client; they share only the protocol.
"""
