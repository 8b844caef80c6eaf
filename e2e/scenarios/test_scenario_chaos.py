"""Everything is killed and paused under I/O, for two minutes; `make chaos MINUTES=30` does it for longer."""

import os
import pathlib

import pytest

from e2e.chaos import run
from e2e.scenario import Scenario

REPORTS = pathlib.Path(__file__).parents[2] / "reports"
MINUTES = 2

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(1800, func_only=True)
@pytest.mark.skipif(bool(run.unable()), reason=run.unable())
def test_chaos(scenario: Scenario) -> None:
    """The same faults in each run, as far as the machine lets them: a failure is to be met again."""
    summary = run.Run(scenario, MINUTES, int(os.environ.get("CHAOS_SEED", "1")), REPORTS).run()
    assert summary.failures == []
    assert summary.rounds == 1
    assert summary.visits
    assert summary.operations > 1000
    assert len(summary.stalls) > 20
