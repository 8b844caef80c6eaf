"""How long a pod with a volume takes, beside the same pod without one; the figures go to `reports/e2e.md`."""

import pathlib

import pytest

from e2e import install, report
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster

RUNS = 5
REPORT = pathlib.Path(__file__).parents[2] / "reports" / "e2e.md"


def test_timings_are_reported(scenario: Scenario) -> None:
    files = scenario.volume()
    columns: dict[str, list[dict[str, float]]] = {"with a volume": [], "without": []}
    for number in range(RUNS):  # in turns, so that the machine's moods meet both
        columns["with a volume"].append(report.one_pod(scenario.cluster, scenario.kubectl, f"with{number}", files))
        columns["without"].append(report.one_pod(scenario.cluster, scenario.kubectl, f"without{number}", None))

    node = scenario.cluster.kubectl(install.NAMESPACE)
    pod = node.items("pods", "-l", "app.kubernetes.io/component=node")[0]
    ports = pod["spec"]["containers"][0]["ports"]
    port = next(p["containerPort"] for p in ports if p["name"] == "metrics")
    name = pod["metadata"]["name"]
    metrics = node("get", "--raw", f"/api/v1/namespaces/{install.NAMESPACE}/pods/{name}:{port}/proxy/metrics")
    published = report.publish_seconds(metrics)
    report.write(REPORT, columns, published)
    print(REPORT.read_text())
    assert set(report.medians(columns["with a volume"])) == set(report.STEPS)
    assert published["data"][0] >= RUNS
