"""What must not happen, or not without a sentence: no label, wrong credentials, missing Secrets, dry runs, contradictions."""

import json

import pytest
from jfs_api import names

from e2e import documents
from e2e.cluster import KubectlError, until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster


def test_namespace_without_label_has_no_sidecar(scenario: Scenario) -> None:
    """The pod is let in as it is; that its volume cannot work is said in its events, and it can be deleted."""
    files = scenario.volume()
    scenario.kubectl("label", "namespace", scenario.name, f"{names.INJECT_LABEL}-")
    scenario.kubectl.apply(documents.pod("plain"), documents.pod("app", mounts={files: "/data"}))

    scenario.kubectl.wait("pod/plain", "condition=Ready")
    assert scenario.containers("plain") == ["app"]
    assert scenario.containers("app") == ["app"]
    assert names.INJECT_LABEL in scenario.event("app", names.EVENT_SIDECAR_MISSING)
    uid = scenario.uid("app")
    scenario.delete("app")
    scenario.gone(uid)


def test_pod_opts_out(scenario: Scenario) -> None:
    pod = dict(documents.pod("app"))
    pod["metadata"] = {"name": "app", "labels": {names.INJECT_LABEL: names.INJECT_DISABLED}}
    scenario.start(pod)
    assert scenario.containers("app") == ["app"]


def test_wrong_credentials_reach_the_pod(scenario: Scenario) -> None:
    """The pod's events say what is wrong without saying the password; it can be deleted; the right password mends it."""
    right = scenario.credentials()
    scenario.volume()
    wrong = right | {"metaurl": right["metaurl"].replace("redis-password", "not-the-right-one")}
    scenario.kubectl.apply(documents.secret("wrong", wrong), *documents.static_volume(scenario.name, "static", "wrong"))
    scenario.kubectl.apply(documents.pod("app", mounts={"static": "/data"}))

    message = scenario.event("app", names.EVENT_MOUNT_FAILED)

    assert "password" in message.lower() or "credentials" in message.lower() or "auth" in message.lower()
    assert "not-the-right-one" not in json.dumps(scenario.kubectl.get("events"))
    uid = scenario.uid("app")
    scenario.delete("app")
    scenario.gone(uid)
    scenario.kubectl.apply(documents.secret("wrong", right))
    scenario.pod("app", {"static": "/data"})
    scenario.sh("app", "echo works >/data/file")
    scenario.kubectl.delete(documents.pod("app"), *documents.static_volume(scenario.name, "static", "wrong"))


def test_missing_secret_and_recovery(scenario: Scenario) -> None:
    """A volume says what it lacks, key by key, and becomes ready when that appears."""
    complete = scenario.credentials()
    scenario.kubectl.apply(documents.volume("files", "files-credentials"))
    scenario.kubectl.wait("jfsv/files", "condition=SecretValid=False")
    assert "files-credentials" in scenario.condition("files", "SecretValid")[2]

    scenario.kubectl.apply(documents.secret("files-credentials", {k: v for k, v in complete.items() if k != "metaurl"}))

    def lacks_key() -> bool:
        return "metaurl" in scenario.condition("files", "SecretValid")[2]

    until("the condition to name the missing key", lacks_key)
    assert scenario.kubectl.find("pvc", "files") is None
    scenario.kubectl.apply(documents.secret("files-credentials", complete))
    scenario.ready("files")
    assert scenario.kubectl.find("pvc", "files") is not None


def test_wrong_password_shows_on_the_volume(scenario: Scenario) -> None:
    right = scenario.credentials()
    wrong = right | {"metaurl": right["metaurl"].replace("redis-password", "not-the-right-one")}
    scenario.kubectl.apply(documents.secret("bad", wrong), documents.volume("files", "bad"))
    scenario.kubectl.wait("jfsv/files", "condition=Formatted=False")

    assert scenario.condition("files", "Ready")[0] == "False"
    assert "not-the-right-one" not in json.dumps(scenario.kubectl.get("jfsv", "files"))
    assert scenario.kubectl.find("pvc", "files") is None
    scenario.kubectl.apply(documents.secret("bad", right))
    scenario.ready("files")


def test_dry_run_creates_nothing(scenario: Scenario) -> None:
    """`--dry-run=server` goes through the webhook and shows the sidecar, and leaves no object anywhere."""
    files = scenario.volume()
    before = {kind: sorted(_names(scenario, kind)) for kind in ("pv", "pvc", "secret", "jfsv", "pod")}
    shown = scenario.kubectl(
        "apply",
        "-f",
        "-",
        "--dry-run=server",
        "-o",
        "json",
        given=json.dumps(documents.pod("app", mounts={files: "/data"})),
    )
    scenario.kubectl.apply(
        documents.secret("other", scenario.credentials("other")), documents.volume("other", "other"), dry_run=True
    )

    assert json.loads(shown)["spec"]["initContainers"][0]["name"] == names.SIDECAR_CONTAINER
    assert {kind: sorted(_names(scenario, kind)) for kind in before} == before
    assert scenario.sessions() == 0


def _names(scenario: Scenario, kind: str) -> list[str]:
    everywhere = scenario.cluster.kubectl()
    return [
        item["metadata"]["name"]
        for item in everywhere.items(kind, "-A")
        if scenario.name
        in (item["metadata"].get("namespace"), item.get("spec", {}).get("claimRef", {}).get("namespace"))
        if kind != "secret" or not item["type"].startswith("kubernetes.io")
    ]


def test_contradictory_volume_is_refused(scenario: Scenario) -> None:
    """Two ways to name the file system at once: the API server says so and nothing is stored."""
    both = documents.volume(
        "files", "credentials", fileSystem={"name": {"value": "x"}, "metaURL": {"value": "redis://r/1"}}
    )
    with pytest.raises(KubectlError, match="secretRef"):
        scenario.kubectl.apply(both)
    assert scenario.kubectl.find("jfsv", "files") is None


def test_claim_that_does_not_exist_yet(scenario: Scenario) -> None:
    """A pod may come before its volume: it waits and then runs."""
    claim = scenario.volume(ready=False)
    scenario.kubectl.apply(documents.pod("app", mounts={claim: "/data"}))
    scenario.kubectl.wait("pod/app", "condition=Ready")
    assert scenario.sh("app", "grep -c fuse.juicefs /proc/mounts") == "1"
