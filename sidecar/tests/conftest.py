"""Servers that the tests of a session share."""

from collections.abc import Iterator

import pytest
from seaweed_server import SeaweedServer


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """A running S3 server."""
    server = SeaweedServer()
    try:
        server.wait()
        yield server
    finally:
        server.stop()
