"""Fixtures of the node service's tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A temporary folder with a short path, in place of pytest's: Unix sockets have at most 107 bytes of it."""
    with tempfile.TemporaryDirectory(prefix="jfs-csi-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
