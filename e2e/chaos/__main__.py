"""python -m e2e.chaos --minutes 30: a chaos run on a one-node cluster of its own; see the package. Ends with 1 after a failure."""

import argparse
import os
import random
import signal
import sys
from pathlib import Path

from e2e import install
from e2e.chaos import report, run
from e2e.cluster import ClusterError, KubectlError, Timeout
from e2e.images.buildah import BuildError
from e2e.install import InstallError
from e2e.scenario import Scenario

REPORTS = Path(__file__).parents[2] / "reports"
NAME = "chaos"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.chaos", description="Kills and pauses everything under I/O.")
    parser.add_argument("--minutes", type=float, default=30, help="of faults (default 30)")
    parser.add_argument("--cluster", default=NAME, help="name of the one-node cluster")
    parser.add_argument("--keep", action="store_true", help="use a cluster that runs, and leave it running")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # what is paused is woken
    reason = run.unable()
    if reason:
        sys.exit(reason)
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1_000_000))
    with install.running(arguments.cluster, arguments.keep) as cluster:
        scenario = Scenario.begin(cluster, NAME)
        summary = run.Run(scenario, arguments.minutes, seed, REPORTS).run()
        print(report.markdown(summary))
        if not summary.failures:
            scenario.end()
    return 1 if summary.failures else 0


try:
    sys.exit(main())
except (ClusterError, KubectlError, InstallError, BuildError, Timeout) as error:
    sys.exit(str(error))
