"""buildah with a store of its own in the cache folder, so that nothing is mixed with the machine's images.

The overlay driver is used where it works (a file system that cannot lie below an overlay falls back to copying, four times slower).
One process at a time: callers hold the lock of `cache.kept`.
"""

import functools
import shutil
import subprocess
from pathlib import Path

from e2e import cache

MOST_LAYERS = 40


class BuildError(Exception):
    """An image could not be built; the text has the end of what the build said."""


@functools.cache
def _store() -> tuple[str, ...]:
    folder = cache.folder() / "buildah"
    folder.mkdir(parents=True, exist_ok=True)
    for driver in ("overlay", "vfs"):
        options = ("--root", f"{folder}/{driver}", "--runroot", f"{folder}/run", "--storage-driver", driver)
        works = subprocess.run(["buildah", *options, "images", "-q"], capture_output=True, check=False).returncode == 0
        if works:
            return options
    raise BuildError("buildah works neither with the overlay nor with the vfs storage driver; see `buildah images`.")


def run(*arguments: str, cwd: Path | None = None) -> str:
    """Standard output; raises BuildError with the last lines of both streams."""
    if not shutil.which("buildah"):
        raise BuildError("buildah is missing; install the Debian package of that name.")
    command = ["buildah", *_store(), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, errors="replace")
    if done.returncode != 0:
        said = (done.stdout + done.stderr).splitlines()[-40:]
        raise BuildError(f"buildah {arguments[0]} failed:\n" + "\n".join(said))
    return done.stdout


def has(image: str) -> bool:
    command = ["buildah", *_store(), "inspect", "--type", "image", image]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build(dockerfile: Path, context: Path, image: str) -> None:
    """Builds as `docker build` would; layers are kept, so that a change of code does not install the dependencies again."""
    options = ["--isolation", "chroot", "--layers", "--pull-never", "--format", "docker"]
    run("bud", *options, "-f", str(dockerfile), "-t", image, str(context))
    # each build after a change leaves its former layers; the newest are what the next build goes on from
    if len(run("images", "--quiet", "--filter", "dangling=true").split()) > MOST_LAYERS:
        run("rm", "--all")  # working containers that killed builds have left hold their layers
        run("rmi", "--prune")


def export(image: str, place: Path) -> None:
    run("push", "--quiet", image, f"docker-archive:{place}:{image}")
