"""Programs from Go modules, built once and kept by the hash of what they are built from.

`path("helm")` is all that others call. `onenode` (every Kubernetes component in one binary) takes about ten minutes from
empty caches; the rest one to three minutes each. Versions stand here and in `onenode/go.mod`, nowhere else.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from e2e import cache
from e2e.progress import step
from e2e.tools import golang

KUBERNETES_VERSION = "v1.34.3"


@dataclass(frozen=True, slots=True)
class Program:
    """A program of a Go module: `package@version`, or a folder with its own go.mod, go.sum and main.go."""

    name: str
    package: str = ""
    source: Path | None = None
    ldflags: str = "-s -w"
    note: str = "about two minutes"

    def key(self) -> str:
        if self.source is None:
            return cache.key(self.package, self.ldflags)
        files = [(self.source / name).read_bytes() for name in ("go.mod", "go.sum", "main.go")]
        return cache.key(self.ldflags, *files)


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "onenode",
            source=Path(__file__).with_name("onenode"),
            # without it every component calls itself v0.0.0-master, which a chart's kubeVersion may refuse
            ldflags=f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}",
            note="ten minutes or more when Go's build cache is empty",
        ),
        Program("tikv", source=Path(__file__).with_name("tikv")),
        Program("helm", "helm.sh/helm/v3/cmd/helm@v3.22.0"),
        Program("csi-sanity", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.6.0"),
        Program("coredns", "github.com/coredns/coredns@v1.13.1"),
    )
}


def path(name: str) -> Path:
    """The built program; builds it now if it is not kept. Raises subprocess.CalledProcessError when Go cannot build it."""
    program = PROGRAMS[name]
    return cache.kept("tools", name, program.key(), lambda place: _build(program, place)) / name


def _build(program: Program, place: Path) -> None:
    with step(f"building {program.name} from its Go module ({program.note})"):
        place.mkdir(parents=True)
        # static binaries: they also run in images without a C library
        environment = os.environ | {"CGO_ENABLED": "0", "GOBIN": str(place), "GOFLAGS": ""}
        go, flags = str(golang.go()), ["-trimpath", "-ldflags", program.ldflags]
        if program.source is not None:
            command = [go, "build", "-C", str(program.source), *flags, "-o", str(place / program.name), "."]
        else:
            command = [go, "install", *flags, program.package]
        if shutil.which("nice"):
            command = ["nice", *command]
        subprocess.run(command, env=environment, stdout=sys.stderr, check=True)
