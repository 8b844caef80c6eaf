"""The command line of `jfs-webhook`, checked completely before anything starts. Pure."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

from jfs_api import names

from jfs_webhook.settings import Settings
from jfs_webhook.trust import Identity
from jfs_webhook.volumes import MODES, BadWish, Resources, parse_resources


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the process was told."""

    settings: Settings
    identity: Identity
    port: int
    health_port: int
    drain_seconds: float
    log_level: str


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read the command line; a wrong one ends the process with status 2 and a sentence."""
    parser = argparse.ArgumentParser(
        prog="jfs-webhook", description="Admission webhook that adds the JuiceFS sidecar to pods.", allow_abbrev=False
    )
    parser.add_argument("--sidecar-image", required=True, type=_text, help="image of the injected sidecar")
    parser.add_argument(
        "--sidecar-image-pull-policy", default="IfNotPresent", choices=("Always", "IfNotPresent", "Never")
    )
    parser.add_argument(
        "--sidecar-image-pull-secrets",
        default=(),
        type=_names,
        help="pull Secrets, comma-separated, that injected pods get (they must exist in the pods' namespaces)",
    )
    parser.add_argument("--driver-name", default=names.DRIVER, type=_text)
    parser.add_argument(
        "--default-resources", default={}, type=_resources, help="resources of the sidecar for each volume, as JSON"
    )
    parser.add_argument(
        "--storage-class", default=(), type=_names, help="classes that are ours without a StorageClass, comma-separated"
    )
    parser.add_argument(
        "--default-mode",
        default=names.AUTO,
        choices=MODES,
        help="mode of sidecars whose volumes name none; auto: privileged where the namespace's PodSecurity level allows it",
    )
    parser.add_argument("--service", required=True, type=_service, help="name.namespace of this webhook's Service")
    parser.add_argument("--configuration", required=True, type=_text, help="its MutatingWebhookConfiguration")
    parser.add_argument(
        "--secret", required=True, type=_secret, help="namespace/name of the Secret for its certificates"
    )
    parser.add_argument("--port", default=8443, type=int, help="port of /mutate (TLS)")
    parser.add_argument("--health-port", default=8080, type=int, help="port of /healthz, /readyz and /metrics")
    parser.add_argument(
        "--drain-seconds",
        default=5.0,
        type=float,
        help="how long requests are still taken after SIGTERM, until the Service has forgotten this pod",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    given = parser.parse_args(argv)
    service, namespace = given.service
    secret_namespace, secret = given.secret
    if secret_namespace != namespace:
        parser.error(f"--secret must be in the namespace of --service, {namespace}, not in {secret_namespace}")
    settings = Settings(
        sidecar_image=given.sidecar_image,
        pull_policy=given.sidecar_image_pull_policy,
        pull_secrets=given.sidecar_image_pull_secrets,
        driver=given.driver_name,
        default_resources=given.default_resources,
        storage_classes=frozenset(given.storage_class),
        default_mode=given.default_mode,
        protected_namespaces=frozenset({"kube-system", namespace}),
    )
    identity = Identity(service, namespace, secret, given.configuration)
    return Arguments(settings, identity, given.port, given.health_port, given.drain_seconds, given.log_level)


def _text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return value.strip()


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _service(value: str) -> tuple[str, str]:
    name, _, namespace = value.partition(".")
    if not name or not namespace:
        raise argparse.ArgumentTypeError("must be name.namespace")
    return name, namespace


def _secret(value: str) -> tuple[str, str]:
    namespace, _, name = value.partition("/")
    if not name or not namespace:
        raise argparse.ArgumentTypeError("must be namespace/name")
    return namespace, name


def _resources(value: str) -> Resources:
    try:
        return parse_resources(json.loads(value))
    except BadWish as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError('must be JSON such as {"requests": {"memory": "128Mi"}}') from error
