"""Fixtures of the tests that need a real API server; nothing of it is imported by the others."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from control_plane import ControlPlane, FakeJfsProgram, OperatorProcess


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[ControlPlane]":
    """The API server; tests share it, each in a namespace of its own."""
    from control_plane import ControlPlane

    plane = ControlPlane(tmp_path_factory.mktemp("plane"))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def jfs(tmp_path_factory: pytest.TempPathFactory) -> "FakeJfsProgram":
    from control_plane import FakeJfsProgram

    return FakeJfsProgram(tmp_path_factory.mktemp("jfs"))


@pytest.fixture(scope="session")
def shared_operator(
    plane: "ControlPlane", jfs: "FakeJfsProgram", tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[OperatorProcess]":
    from control_plane import OperatorProcess

    operator = OperatorProcess(plane, jfs.path, tmp_path_factory.mktemp("operator"))
    try:
        yield operator
    finally:
        if operator.running:
            operator.end()


@pytest.fixture
def operator(shared_operator: "OperatorProcess") -> "OperatorProcess":
    """The operator, running."""
    if not shared_operator.running:
        shared_operator.start()
    return shared_operator
