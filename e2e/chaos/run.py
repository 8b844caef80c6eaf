"""The order of a chaos run: world, rounds, report.

A round: the application's pods start; faults are injected and visits go on; all comes to rest; the application verifies what it has;
secrets are looked for; the pods are deleted and nothing of them may be left; a fresh pod reads every file again; `jfs fsck` finds nothing.
What goes wrong is collected, so that one fault does not hide another; the run has failed when the summary has failures.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from e2e.chaos import exposure, leftovers, plan, records, report
from e2e.chaos.injector import DONE, Injector
from e2e.chaos.parts import Parts
from e2e.chaos.records import Records
from e2e.chaos.report import Summary
from e2e.chaos.visits import Visits
from e2e.chaos.world import PODS, SERVERS, World
from e2e.cluster import KubectlError, Timeout, diagnosis, until
from e2e.install import NAMESPACE, WORKLOADS
from e2e.progress import say, step
from e2e.scenario import Scenario

ROUND_SECONDS = 300.0  # at most: new pods have the kubelet's back-off anew
_REST = 300.0  # until everything runs again
NEEDED = (6, 9)


def unable() -> str:
    """Why this machine cannot keep the promises that are checked, or an empty text."""
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and (int(numbers[1]), int(numbers[2])) >= NEEDED:
        return ""
    return (
        f"Linux {release} is too old for a chaos run: before 6.9 operations that are under way when a sidecar dies fail with "
        "ECONNABORTED, as documented, so that their outcome cannot be checked. Use a newer kernel."
    )


class Run:
    """`scenario` is a namespace of the cluster that nobody else uses; `reports` a folder, which gets the report, and after a failure
    what the cluster looked like then."""

    def __init__(self, scenario: Scenario, minutes: float, seed: int, reports: Path) -> None:
        self.reports = reports
        self.world = World(scenario)
        self.scenario = scenario
        self.summary = Summary(seed, os.uname().release, minutes)
        self.failures = self.summary.failures
        self.visits = Visits(self.world, self.failures)

    def run(self) -> Summary:
        """Always writes the report, of what there was until an error too."""
        try:
            self._rounds()
        except (KubectlError, Timeout) as error:
            self.failures.append(str(error))
            self._keep_traces()
        finally:
            report.write(self.reports, self.summary)
        return self.summary

    def _rounds(self) -> None:
        say(f"CHAOS_SEED={self.summary.seed} repeats these faults")
        with step("making back ends, volumes and a fresh namespace"):
            self.world.prepare()
        left = self.summary.minutes * 60
        number = 0
        while left > 0 and not self.failures:
            seconds = min(left, ROUND_SECONDS)
            with step(f"round {number + 1}, {seconds:.0f} s"):
                self._round(number, seconds)
            left -= seconds
            number += 1
        with step("starting the parts afresh"):  # the kubelet forgets how often they were killed
            system = self.scenario.cluster.kubectl(NAMESPACE)
            system("rollout", "restart", *WORKLOADS)
            for workload in WORKLOADS:
                system("rollout", "status", workload, f"--timeout={_REST:.0f}s", timeout=_REST + 30)
        self.world.end()

    def _round(self, number: int, seconds: float) -> None:
        with step("starting the application's pods"):
            pods = [self.world.pod(ordinal, number, self.summary.seed) for ordinal in range(len(PODS))]
            self.scenario.start(*pods)
        names = [str(pod["metadata"]["name"]) for pod in pods]
        uids = [self.scenario.uid(name) for name in names]
        followed = [Records.of(self.scenario.cluster, pod, uid) for pod, uid in enumerate(uids)]
        parts = Parts(self.scenario.cluster, uids, self._servers(), SERVERS)
        for uid in uids:
            parts.connections(uid)
        faults = plan.faults(self.summary.seed, number, seconds, len(PODS))
        say(f"the plan: {plan.counted(faults)}")
        injector = Injector(self.scenario.cluster, parts, lambda: _progress(followed), self.failures)
        with self.visits:
            injector.run(faults, seconds)
        self.summary.visits = self.visits.durations
        self._rest(names)
        self._verify_running(followed)
        self.summary.stalls += report.stalls(injector.injected, followed)
        self.summary.quiet += report.quiet(injector.injected, followed)
        self.summary.absent += sum(one.outcome != DONE for one in injector.injected)
        self.summary.operations += sum(sum(one.counts.values()) for one in followed)
        with step("looking for secrets"):  # while the pods are there
            self.failures += exposure.found(self.world)
        if self.failures:
            self._keep_traces()
        with step("deleting the pods"):
            for uid in uids:
                parts.connections(uid)
            self._delete(names)
            self.failures += leftovers.after(self.world, parts, uids)
        self._verify_fresh(parts, followed)
        self.summary.rounds += 1

    def _servers(self) -> dict[str, str]:
        inside = self.scenario.cluster.kubectl(self.world.storage)
        pods = {name: inside.items("pods", "-l", f"app={name}") for name in SERVERS}
        return {name: found[0]["metadata"]["uid"] for name, found in pods.items()}

    def _rest(self, names: Sequence[str]) -> None:
        """Everything that was killed runs again; the application was never started again."""
        system = self.scenario.cluster.kubectl(NAMESPACE)
        with step("waiting until everything runs again"):
            for workload in WORKLOADS:
                until(f"{workload} to be ready", partial(system, "rollout", "status", workload), _REST)
            for name in names:
                until(f"the pod {name} to be ready", partial(self._ready, name), _REST)
        for name in names:
            for status in self.scenario.kubectl.get("pod", name)["status"]["containerStatuses"]:
                if status["restartCount"]:
                    self.failures.append(f"the application's container of {name} ended {status['restartCount']} times")

    def _ready(self, name: str) -> bool:
        self.scenario.kubectl.wait(f"pod/{name}", "condition=Ready", 60)
        return True

    def _verify_running(self, followed: Sequence[Records]) -> None:
        def ended() -> bool:
            for one in followed:
                one.update()
            return not any(one.running() for one in followed)

        with step("the application verifies what it has"):
            for one in followed:
                one.stop()
            try:
                until("the application's processes to end", ended, _REST)
            except Timeout:
                hung = [f"pod {one.pod}: {', '.join(one.running())}" for one in followed if one.running()]
                self.failures.append(f"operations that never returned: {'; '.join(hung)}")
        for one in followed:
            self.failures += one.errors()

    def _keep_traces(self) -> None:
        """While the pods with their logs are there."""
        cluster, name = self.scenario.cluster, self.scenario.name
        place = self.reports / "chaos-cluster.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        mounts = "\n".join(line for line in cluster.mounts() if "juicefs" in line.lower())
        text = diagnosis.report(cluster.kubectl(), [name], NAMESPACE, lines=2000)
        failures = "\n".join(self.failures)
        place.write_text(f"{failures}\n{text}\n== kubelet\n{cluster.log('kubelet', 400)}\n== mounts\n{mounts}\n")
        say(f"{len(self.failures)} failures; what the cluster looked like: {place}")

    def _delete(self, names: Sequence[str]) -> None:
        self.scenario.kubectl("delete", "pod", *names)

    def _verify_fresh(self, parts: Parts, followed: Sequence[Records]) -> None:
        """After a fresh mount each file is what its process said; then the volumes are emptied for the next round."""
        with step("reading everything after a fresh mount"):
            self.scenario.start(self.world.reader("reader"))
            uid = self.scenario.uid("reader")
            parts.connections(uid)
            expected, found = records.expected(followed), self.world.tree("reader")
            for volume, tree in found.items():
                self.failures += records.differences(volume, tree, expected.get(volume, {}))
            self.summary.files += sum(len(tree) for tree in found.values())
            for volume in found:
                damages = self.world.damages(volume)
                if damages:
                    self.failures.append(f"jfs fsck of volume {volume}: {damages.strip()}")
            self.scenario.sh("reader", " && ".join(f"rm -r /{volume}/*" for volume in found))
            self._delete(["reader"])
            self.failures += leftovers.after(self.world, parts, [uid])


def _progress(followed: Sequence[Records]) -> str:
    for one in followed:
        one.update()
    operations = sum(sum(one.counts.values()) for one in followed)
    errors = [error for one in followed for error in one.errors()]
    longest = max((slow.seconds for one in followed for slow in one.slow if slow.what != "lock"), default=0.0)
    said = f"{operations} operations, longest {longest:.2f} s, {len(errors)} errors"
    return "; ".join([said, *errors])
