"""The command line of `jfs doctor`: arguments, one reading of facts, one page, an exit status that tells."""

import argparse
import datetime
import sys
from collections.abc import Sequence
from typing import Any, Final

from jfs_api import names
from kubernetes.config import list_kube_config_contexts
from kubernetes.config.config_exception import ConfigException

from jfs_operator import kube
from jfs_operator.api import Api, ApiError, ApiUnavailable
from jfs_operator.doctor import page
from jfs_operator.doctor.checks import examine
from jfs_operator.doctor.facts import Collector, Facts

_EXAMPLES: Final = """\
It changes nothing, reads no Secret, and needs no more than the rights to read the pod; what it may not look at is marked.

exit status: 0 no problem; 1 a cause was found; 2 nothing could be found out; 3 no problem, but not everything could be seen

examples:
  jfs doctor -n team-a web-0                  why is the volume of this pod not ready?
  jfs doctor -n team-a jfsv/shared            … of this JuiceFSVolume?
  jfs doctor -n team-a web-0 -o json          for programs
  kubectl exec -n juicefs-system deployment/juicefs-operator -- jfs doctor -n team-a web-0
                                              without the command on this machine, with the operator's rights
"""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="jfs doctor",
        description="Explains on one page why a pod's volume, or a JuiceFSVolume, is not ready, and what to do.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("target", metavar="POD", help="a pod, pod/NAME, or jfsv/NAME for a JuiceFSVolume")
    found.add_argument("-n", "--namespace", help="its namespace (default: the kubeconfig context's)")
    found.add_argument("-o", "--output", choices=["text", "json"], default="text", help="form of the answer")
    found.add_argument("--kubeconfig", help="default: the pod's service account, $KUBECONFIG or ~/.kube/config")
    found.add_argument("--context", help="of the kubeconfig")
    found.add_argument("--driver-name", default=names.DRIVER, help="name of the CSI driver (default: %(default)s)")
    found.add_argument("--system-namespace", help="where the chart is installed (default: as the webhook says)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status as in `page.Exit`."""
    options = parser().parse_args(arguments)
    try:
        api = kube.connect(options.kubeconfig, options.context)
        namespace = options.namespace or _default_namespace(options.kubeconfig, options.context)
    except (ConfigException, OSError) as error:
        return _fail(f"no way to reach the API server: {error}")
    try:
        answer, code = diagnose(api, namespace, options)
    except (ApiError, ApiUnavailable) as error:
        return _fail(str(error))
    finally:
        api.close()
    sys.stdout.write(answer)
    return code


def diagnose(api: Api, namespace: str, options: argparse.Namespace) -> tuple[str, int]:
    """The answer and the exit status. Raises ApiError when the object itself may not be read, ApiUnavailable."""
    kind, slash, name = options.target.rpartition("/")
    if slash and kind not in ("pod", "pods", "jfsv", names.VOLUME_PLURAL, names.VOLUME_PLURAL[:-1]):
        raise ApiError(400, f"{options.target} is neither a pod nor a JuiceFSVolume (jfsv/NAME)")
    is_pod = not slash or kind.startswith("pod")
    collector = Collector(api, options.driver_name, options.system_namespace)
    facts: Facts | None = collector.pod(namespace, name) if is_pod else collector.volume(namespace, name)
    subject = f"{'Pod' if is_pod else names.VOLUME_KIND} {namespace}/{name}"
    if facts is None:
        raise ApiError(404, f"{subject} does not exist")
    findings = examine(facts, datetime.datetime.now(datetime.UTC))
    if options.output == "json":
        return page.document(subject, findings, facts.events) + "\n", page.verdict(findings)
    if is_pod:
        subject += f" ({(facts.pod.get('status') or {}).get('phase', 'Pending')})"
    return page.text(subject, findings, facts.events), page.verdict(findings)


def _default_namespace(kubeconfig: str | None, context: str | None) -> str:
    try:
        listed: Any = list_kube_config_contexts(kubeconfig)
    except ConfigException:
        return "default"  # inside a pod
    contexts, active = listed
    chosen = next((each for each in contexts if each["name"] == context), active)
    return str((chosen.get("context") or {}).get("namespace") or "default")


def _fail(sentence: str) -> int:
    sys.stderr.write(f"jfs doctor: {sentence.rstrip('.')}.\n")
    return page.Exit.FAILED


if __name__ == "__main__":
    sys.exit(main())
