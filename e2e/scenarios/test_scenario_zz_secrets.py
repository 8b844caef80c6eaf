"""After all scenarios: nothing that people or programs can read holds a secret, though mounts failed, died and changed before."""

import json
import secrets

import pytest
from jfs_api import names

from e2e import documents, secrecy
from e2e.cluster import until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster

# Those of the back ends, in every volume of every scenario of this run, and wrong ones that scenarios tried.
SHARED = ("redis-password", "s3-secret-key", "not-the-right-one")


def test_no_secret_is_anywhere(scenario: Scenario) -> None:
    """A pod in each mode whose worker and container die, a Secret that changes, and one that is wrong."""
    own, later, wrong = (f"hush-{secrets.token_hex(12)}" for _ in range(3))
    values = scenario.credentials(envs=json.dumps({"MARKER": own}))
    scenario.kubectl.apply(documents.secret("files-credentials", values))
    for mode in (names.PRIVILEGED, names.RESTRICTED):
        wish = {"mode": mode}
        scenario.kubectl.apply(documents.volume(mode, "files-credentials", sidecar=wish, subPath=mode))
        scenario.ready(mode)
        scenario.pod(mode, {mode: "/data"}, "trap exit TERM; while true; do date >>/data/f; sleep 1; done")
    bad = values | {"metaurl": values["metaurl"].replace("redis-password", wrong)}
    scenario.kubectl.apply(
        documents.secret("wrong", bad),
        *documents.static_volume(scenario.name, "static", "wrong"),
        documents.pod("fails", mounts={"static": "/data"}),
        documents.volume("unformatted", "wrong"),
    )
    assert scenario.event("fails", names.EVENT_MOUNT_FAILED)
    scenario.kubectl.wait("jfsv/unformatted", "condition=Formatted=False")

    # successors of a worker, and of a container; then other credentials under the running application
    for mode, word in ((names.PRIVILEGED, "worker"), (names.RESTRICTED, "sidecar")):
        found = scenario.cluster.pod_processes(scenario.uid(mode))
        for number in [number for number, command in found if word in command.split()]:
            scenario.cluster.kill(number)
        assert scenario.event(mode, names.EVENT_SIDECAR_RESTARTED)
    changed = values | {"envs": json.dumps({"MARKER": later})}
    scenario.kubectl.apply(documents.secret("files-credentials", changed))
    for mode in (names.PRIVILEGED, names.RESTRICTED):
        assert scenario.event(mode, names.EVENT_UPDATED, seconds=180)

    kinds = {each["metadata"]["name"] for each in scenario.kubectl.items("secrets")}
    assert kinds == {"files-credentials", "wrong"}  # the user's own
    assert secrecy.found(scenario.cluster, [*SHARED, own, later, wrong]) == []
    # and the look is not blind: what is no secret is found where it belongs
    seen = secrecy.found(scenario.cluster, [scenario.name, "juicefs-webhook-tls"])
    assert {"objects: secret 0", "cmdline of jfs-webhook: secret 1"} <= set(seen)
    scenario.kubectl.delete(*documents.static_volume(scenario.name, "static", "wrong"), wait=False)
    uids = [pod["metadata"]["uid"] for pod in scenario.kubectl.items("pods")]
    scenario.kubectl("delete", "pods", "--all", "--wait=false")
    for uid in uids:
        scenario.gone(uid)
    until("all sessions to be closed", lambda: scenario.sessions() == 0)
