"""What whoever operates the cluster sees: attachments in the volume's status, what `jfs doctor` says, and images that are rolled out."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from jfs_api import names

from e2e import documents, images, install
from e2e.cluster import Document, until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster


def attachments(scenario: Scenario, volume: str = "files") -> dict[str, Document]:
    """By pod."""
    status = scenario.kubectl.get("jfsv", volume)["status"]
    found = {entry["pod"]: entry for entry in status.get("attachments", ())}
    assert status.get("pods", 0) == len(found)
    return found


def supervisor(scenario: Scenario, pod: str) -> int:
    processes = scenario.cluster.pod_processes(scenario.uid(pod))
    (found,) = [number for number, command in processes if "jfs" in command and "sidecar" in command.split()]
    return found


def test_attachments_follow_the_pods(scenario: Scenario) -> None:
    files = scenario.volume()
    scenario.pod("first", {files: "/data"})
    scenario.pod("second", {files: "/data"})

    def served() -> bool:
        return {pod: entry["state"] for pod, entry in attachments(scenario).items()} == {
            "first": "Attached",
            "second": "Attached",
        }

    until("both pods in the status", served)
    first = attachments(scenario)["first"]
    assert (first["podUID"], first["mode"], first["restarts"]) == (scenario.uid("first"), "privileged", 0)
    assert first["node"] == scenario.kubectl.get("pod", "first")["spec"]["nodeName"]
    assert first["since"]
    assert "lastStallMs" not in first

    scenario.cluster.kill(supervisor(scenario, "first"))
    until("the restart in the status", lambda: attachments(scenario)["first"].get("restarts") == 1)
    again = attachments(scenario)["first"]
    assert again["generation"] > first["generation"]
    assert again["since"] == first["since"]
    assert again["lastStallMs"] > 0
    assert attachments(scenario)["second"]["restarts"] == 0
    # what the node service counted outlives it
    system = scenario.cluster.kubectl(install.NAMESPACE)
    system("rollout", "restart", "daemonset/juicefs-node")
    system("rollout", "status", "daemonset/juicefs-node", "--timeout=120s", timeout=150)
    (node,) = system.items(names.NODE_PLURAL)
    assert node["attachments"]
    until("both pods in the status again", served)
    assert attachments(scenario)["first"]["restarts"] == 1

    scenario.delete("first")
    until("one pod in the status", lambda: list(attachments(scenario)) == ["second"])
    scenario.delete("second")
    until("no pod in the status", lambda: attachments(scenario) == {})


def doctor(scenario: Scenario, target: str, *options: str) -> tuple[int, str]:
    """As the README says to run it: in the operator's pod."""
    system = scenario.cluster.kubectl(install.NAMESPACE)
    command = ["jfs", "doctor", "-n", scenario.name, target, *options]
    done = system.process("exec", "deployment/juicefs-operator", "--", *command)
    print(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.returncode, done.stdout or done.stderr


def cause(scenario: Scenario, target: str, words: str) -> Document:
    """The answer as JSON once its cause has the words."""
    seen: list[str] = []

    def look() -> Document | None:
        code, text = doctor(scenario, target, "--output", "json")
        seen[:] = [text]
        found: Document = json.loads(text) if code in (0, 1, 3) else {}
        return found if words in str(found.get("cause")) else None

    return until(f"{words!r} to be the cause", look, pause=2)


def test_the_doctor_names_the_cause_and_the_remedy(scenario: Scenario) -> None:
    files = scenario.volume()
    scenario.pod("well", {files: "/data"})
    code, text = doctor(scenario, "well")
    assert code == 0, text
    assert "No problem was found." in text
    assert "and its certificate authority is valid" in text
    assert doctor(scenario, f"jfsv/{files}")[0] == 0
    code, text = doctor(scenario, "nobody")
    assert code == 2
    assert f"jfs doctor: Pod {scenario.name}/nobody does not exist." in text

    # an image that cannot be had
    broken = scenario.volume("broken", sidecar={"image": "localhost/no-such-image:1"})
    scenario.kubectl.apply(documents.pod("imageless", mounts={broken: "/data"}))
    found = cause(scenario, "imageless", "localhost/no-such-image:1 cannot be had")
    assert "spec.sidecar.image" in found["remedy"]

    # an address at which nobody is
    wrong = scenario.credentials("wrong") | {"metaurl": f"redis://redis.{install.BACKENDS_NAMESPACE}:6377/1"}
    scenario.kubectl.apply(documents.secret("wrong", wrong), documents.volume("wrong", "wrong"))
    found = cause(scenario, "jfsv/wrong", names.FORMATTED)
    assert "can be reached" in found["remedy"]
    scenario.kubectl.apply(documents.pod("waiting", mounts={"wrong": "/data"}))
    cause(scenario, "waiting", names.FORMATTED)

    # no label: the remedy, word for word
    scenario.kubectl("label", "namespace", scenario.name, f"{names.INJECT_LABEL}-")
    scenario.kubectl.apply(documents.pod("bare", mounts={files: "/data"}))
    found = cause(scenario, "bare", "is not labelled")
    assert found["remedy"].startswith(f"kubectl label namespace {scenario.name} {names.INJECT_LABEL}=")
    scenario.kubectl("label", "namespace", scenario.name, f"{names.INJECT_LABEL}={names.INJECT_ENABLED}")
    found = cause(scenario, "bare", f"no container {names.SIDECAR_CONTAINER}")
    assert found["remedy"].startswith(f"kubectl delete pod -n {scenario.name} bare")
    scenario.delete("bare")
    scenario.pod("bare", {files: "/data"})
    assert doctor(scenario, "bare")[0] == 0


def test_the_doctor_works_with_a_tenants_rights(scenario: Scenario) -> None:
    """On one's own machine, with the cluster role `view` in one namespace: what that does not show is said."""
    files = scenario.volume()
    scenario.pod("app", {files: "/data"})
    scenario.kubectl("create", "serviceaccount", "tenant")
    scenario.kubectl(
        "create", "rolebinding", "tenant", "--clusterrole=view", f"--serviceaccount={scenario.name}:tenant"
    )
    token = scenario.kubectl("create", "token", "tenant").strip()
    config = json.loads(scenario.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    config["users"] = [{"name": "tenant", "user": {"token": token}}]
    config["contexts"] = [
        {
            "name": "tenant",
            "context": {"cluster": config["clusters"][0]["name"], "user": "tenant", "namespace": scenario.name},
        }
    ]
    config["current-context"] = "tenant"

    def ask() -> subprocess.CompletedProcess[str]:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(config, file)
            file.flush()
            program = str(Path(sys.executable).with_name("jfs"))
            command = [*scenario.kubectl.prefix, program, "doctor", "--kubeconfig", file.name, "app"]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    # The operator adds what the node service tells a moment after it has seen the pod.
    until("the attachment in the status", lambda: attachments(scenario).get("app", {}).get("state") == "Attached")
    done = ask()
    print(done.stdout + done.stderr)
    assert done.returncode == 3, done.stdout + done.stderr
    page = " ".join(done.stdout.split())
    assert "you may not get mutatingwebhookconfigurations" in page
    assert "takeovers" in page, "the attachment is known from the volume's status"
    assert "needs more rights" in page


COUNTER = """trap exit TERM
exec 3>/data/$HOSTNAME.open
i=0
while true; do
  i=$((i + 1))
  echo $i >&3 && echo $i >/data/$HOSTNAME.new && mv /data/$HOSTNAME.new /data/$HOSTNAME.count &&
    test "$(cat /data/$HOSTNAME.count)" = $i || { echo failed at $i; exit 1; }
  echo $i >/tmp/count.new && mv /tmp/count.new /tmp/count
done"""


class Rolling:
    """Pods that write without a pause while images are rolled out, and the chart's values for it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        # As it is installed: the parts of the release have to stay what they are.
        operator = scenario.cluster.kubectl(install.NAMESPACE).get("deployment", "juicefs-operator")
        self._archive = Path(operator["spec"]["template"]["metadata"]["annotations"]["image"])

    def chart(self, repository: str, *more: str) -> None:
        """Upgrade the release to the sidecar image of that repository, rollout enabled."""
        settings = [f"images.sidecar.repository={repository}", *more]
        install.chart(self.scenario.cluster.kubectl(), self._archive, settings)

    def image(self, pod: str) -> str:
        return str(self.scenario.kubectl.get("pod", pod)["spec"]["initContainers"][0]["image"])

    def restarts(self, pod: str) -> tuple[int, int]:
        """Of the sidecar and of the application."""
        status = self.scenario.kubectl.get("pod", pod)["status"]
        return status["initContainerStatuses"][0]["restartCount"], status["containerStatuses"][0]["restartCount"]

    def count(self, pod: str) -> int:
        return int(self.scenario.sh(pod, "cat /tmp/count"))

    def goes_on(self, pod: str) -> None:
        before = self.count(pod)
        until(f"{pod} to write on", lambda: self.count(pod) > before)
        assert "failed" not in self.scenario.kubectl("logs", pod, "-c", "app")


def test_an_image_is_rolled_out_and_a_bad_one_stops(scenario: Scenario) -> None:
    """One pod after the other, in both modes, while they write; no application notices."""
    rolling = Rolling(scenario)
    files = scenario.volume()
    more = scenario.volume("more", sidecar={"mode": "restricted"})
    own = scenario.volume("own", sidecar={"rollout": names.MANUAL})
    pods = ("a", "b", "c")
    claims = dict(zip(pods, (files, more, files), strict=True))
    scenario.start(*(documents.pod(name, COUNTER, {claims[name]: "/data"}) for name in pods))
    scenario.pod("manual", {own: "/data"})
    old = rolling.image("a")
    repository, _, tag = images.NAMES["sidecar"].rpartition(":")
    new = f"{repository}-next:{tag}"
    scenario.cluster.run("ctr", "-n", "k8s.io", "images", "tag", "--force", images.NAMES["sidecar"], new)
    enabled = ("rollout.enabled=true", "rollout.pauseSeconds=2", "rollout.timeoutSeconds=120")
    try:
        rolling.chart(f"{repository}-next", *enabled)
        until("all pods to have the new image", lambda: all(rolling.image(pod) == new for pod in pods), seconds=400)
        until("no pod's turn to be left", lambda: scenario.condition(files, names.SIDECARS_CURRENT)[1] == "UpToDate")
        for pod in pods:
            rolling.goes_on(pod)
            assert rolling.restarts(pod) == (1, 0), pod
        assert rolling.image("manual") == old
        assert rolling.restarts("manual") == (0, 0)
        assert scenario.condition(own, names.SIDECARS_CURRENT)[1] == "Manual"
        assert new in scenario.event("a", names.EVENT_SIDECAR_REPLACED)
        print({pod: scenario.kubectl.events(pod) for pod in pods})

        bad = "localhost/no-such-sidecar"
        rolling.chart(bad, *enabled)
        until(
            "the rollout to stop", lambda: scenario.condition(files, names.SIDECARS_CURRENT)[1] == names.ROLLOUT_STOPPED
        )
        until("the pod to have its former image", lambda: all(rolling.image(pod) == new for pod in pods))
        told = scenario.event("a", names.EVENT_SIDECAR_ROLLED_BACK)
        assert bad in told
        assert "ImagePullBackOff" in told, "as soon as the kubelet says so, not at the end of the time"
        for pod in pods:
            rolling.goes_on(pod)
        assert [rolling.restarts(pod)[1] for pod in pods] == [0, 0, 0]
        assert [rolling.restarts(pod)[0] for pod in pods[1:]] == [1, 1], "only the first had it"
        volume = scenario.kubectl.get("jfsv", files)
        assert volume["metadata"]["annotations"][names.ROLLOUT_STOPPED_ANNOTATION] == f"{bad}:{tag}"
    finally:
        rolling.chart(repository)
    for pod in pods:
        scenario.delete(pod)
