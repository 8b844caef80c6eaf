"""A one-node Kubernetes by hand.

python -m e2e.cluster up NAME                    start it (one of the same name is taken down first)
python -m e2e.cluster exec NAME COMMAND…         run a host program in its network with KUBECONFIG set, as kubectl, helm or bash
python -m e2e.cluster inside NAME COMMAND…       run a command inside the node: its files, processes and mounts
python -m e2e.cluster logs NAME [COMPONENT]      the last lines of its components' logs
python -m e2e.cluster down NAME                  end it; no process, mount, control group or interface stays
"""

import os
import subprocess
import sys
from pathlib import Path

from e2e import images
from e2e.cluster.instance import Cluster, ClusterError, components


def main(arguments: list[str]) -> int:
    match arguments:
        case ["up", name]:
            Cluster.named(name).up(images.path("pause"), images.path("coredns"))
        case ["exec", name, *command] if command:
            cluster = Cluster.named(name)
            programs = str(Path(sys.executable).parent)  # kubectl
            environment = cluster.environment()
            environment["PATH"] = f"{programs}:{os.environ.get('PATH', '')}"
            return subprocess.run([*cluster.network(), *command], env=environment, check=False).returncode
        case ["inside", name, *command] if command:
            sys.stdout.write(Cluster.named(name).run(*command))
        case ["logs", name, *names]:
            for component in components(names):
                print(f"== {component}\n{Cluster.named(name).log(component)}")
        case ["down", name]:
            Cluster.named(name).down()
        case _:
            sys.exit(__doc__)
    return 0


try:
    sys.exit(main(sys.argv[1:]))
except (ClusterError, ValueError) as error:
    sys.exit(str(error))
