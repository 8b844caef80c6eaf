"""Small facts about this process and its children, and its log: what the supervisor's loop says and asks of the system."""

import argparse
import errno
import os
import socket
import sys
import time

GRACE_ENVIRONMENT = "JFS_GRACE_SECONDS"
GRACE_DEFAULT = 25.0
SOCKET = "s"  # of the node service, in the control directory


def log(text: str) -> None:
    """One line for the container's log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, file=sys.stderr, flush=True)


def version() -> str:
    # The installation's directory says it; importlib.metadata would cost five megabytes for this one string.
    for directory in sys.path:
        try:
            entries = os.listdir(directory or ".")
        except OSError:
            continue
        for entry in entries:
            if entry.startswith("juicefs_sidecar-") and entry.endswith(".dist-info"):
                return entry.removeprefix("juicefs_sidecar-").removesuffix(".dist-info")
    return "unknown"


def how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"with exit status {code}" if code >= 0 else f"by signal {-code}"


def drain(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 512)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EINTR):
            return b""
        raise


def connect(directory: str) -> socket.socket:
    """A connection to the node service, non-blocking. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By the descriptor: a socket's address has only 108 bytes.
            connection.connect(f"/proc/self/fd/{descriptor}/{SOCKET}")
        finally:
            os.close(descriptor)
    except OSError:
        connection.close()
        raise
    return connection


def grace_seconds(parser: argparse.ArgumentParser) -> float:
    """How long the sidecar may take to end; the parser is told of what is no number."""
    text = os.environ.get(GRACE_ENVIRONMENT)
    if text is None:
        return GRACE_DEFAULT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        parser.error(f"{GRACE_ENVIRONMENT}={text!r} is not a number of seconds above 0.")
    return seconds
