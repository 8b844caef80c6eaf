"""The command line is checked before anything starts."""

import pytest
from jfs_webhook.arguments import parse_arguments
from jfs_webhook.main import main
from jfs_webhook.trust import Identity

REQUIRED = [
    "--sidecar-image=i:1",
    "--service=hook.system",
    "--configuration=hook",
    "--secret=system/hook-tls",
]


def test_everything_given() -> None:
    arguments = parse_arguments(
        [
            *REQUIRED,
            "--sidecar-image-pull-policy=Always",
            "--sidecar-image-pull-secrets=a, b",
            "--driver-name=d.example",
            '--default-resources={"limits": {"memory": "1Gi"}}',
            "--storage-class=one,two",
            "--port=1",
            "--health-port=2",
            "--drain-seconds=0",
            "--log-level=debug",
        ]
    )
    settings = arguments.settings
    assert (settings.sidecar_image, settings.pull_policy, settings.pull_secrets) == ("i:1", "Always", ("a", "b"))
    assert (settings.driver, settings.default_resources) == ("d.example", {"limits": {"memory": "1Gi"}})
    assert settings.storage_classes == {"one", "two"}
    assert settings.protected_namespaces == {"kube-system", "system"}
    assert arguments.identity == Identity("hook", "system", "hook-tls", "hook")
    assert arguments.identity.hosts[0] == "hook.system.svc"
    assert (arguments.port, arguments.health_port, arguments.drain_seconds) == (1, 2, 0)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (REQUIRED[1:], "--sidecar-image"),
        ([*REQUIRED, "--sidecar-image="], "must not be empty"),
        ([*REQUIRED, "--sidecar-image-pull-policy=Sometimes"], "invalid choice"),
        ([*REQUIRED, "--service=hook"], "name.namespace"),
        ([*REQUIRED, "--secret=hook-tls"], "namespace/name"),
        ([*REQUIRED, "--secret=elsewhere/hook-tls"], "must be in the namespace"),
        ([*REQUIRED, "--default-resources={"], "must be JSON"),
        ([*REQUIRED, '--default-resources={"limits": {"cpu": "x"}}'], "not a quantity"),
        ([*REQUIRED, "--unknown"], "--unknown"),
    ],
)
def test_wrong_command_lines_end_with_a_sentence(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(argv)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_no_cluster_is_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    assert main(REQUIRED) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("jfs-webhook: no API server to talk to")
