"""`jfs doctor`: handed on to whoever offers it.

The client knows nothing of Kubernetes and must not need a client of its API server. What explains a pod is part of the operator,
which offers it under the entry point group `jfs.commands`; where its dependencies are not installed, one sentence says how to run it.
"""

from importlib.metadata import entry_points
from typing import Final

from jfs.errors import ConfigError

_GROUP: Final = "jfs.commands"


def main(arguments: list[str]) -> int:
    """Raises ConfigError where the operator's part is missing."""
    found = entry_points(group=_GROUP, name="doctor")
    try:
        (entry,) = found
        command = entry.load()
    except (ValueError, ImportError):
        raise ConfigError(
            "doctor asks the API server of a cluster, and that part is not installed here: pip install"
            " 'juicefs-sidecar[operator]', or run it in the operator's pod: kubectl exec -n juicefs-system"
            " deployment/juicefs-operator -- jfs doctor …"
        ) from None
    return int(command(arguments))
