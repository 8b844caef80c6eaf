"""Serving a mount to the kernel: the request handlers, and the two hosts that feed them (pyfuse3, own protocol)."""
