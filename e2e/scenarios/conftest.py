"""One cluster with the chart and its back ends for all scenarios, and a namespace for each.

While working on a scenario, `E2E_KEEP=1` keeps the cluster for the next run, which upgrades what has changed in it; `E2E_CLUSTER` names
another than the one of all test runs on this machine.
A scenario that fails leaves a report of what a person would look at in `reports/`; its summary is part of the test's output.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e import install
from e2e.cluster import Cluster
from e2e.scenario import Scenario, reported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # of the scenario itself; every wait inside ends earlier and says what it waited for
            item.add_marker(pytest.mark.timeout(600, func_only=True))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A one-node cluster with the product installed."""
    keep = os.environ.get("E2E_KEEP") == "1"
    with install.running(os.environ.get("E2E_CLUSTER", "scenarios"), keep) as cluster:
        install.backends(cluster.kubectl())
        yield cluster


@pytest.fixture
def scenario(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """A labelled namespace named after the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[:40].strip("-")
    with reported(cluster, name, lambda: request.session.testsfailed) as scenario:
        yield scenario
