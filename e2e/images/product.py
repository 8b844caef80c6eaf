"""The two product images, from the project's Dockerfiles and its tree."""

from pathlib import Path

from e2e import cache
from e2e.images import base, buildah
from e2e.progress import step

REPOSITORY = Path(__file__).parents[2]
# What .dockerignore lets into a build; only files of these kinds reach an image.
CONTEXT = ("pyproject.toml", "uv.lock", "README.md", "LICENSE", ".dockerignore")
PACKAGES = ("operator/jfs_api", "operator/jfs_operator", "webhook/jfs_webhook", "csi/jfs_csi", "sidecar/jfs")


def key(name: str) -> str:
    """Changes with the Dockerfile, the lock file, any packaged file and the base image."""
    tree = cache.tree_key(REPOSITORY, (f"Dockerfile.{name}", *CONTEXT, *PACKAGES))
    return cache.key(tree, base.key())


def make(name: str, image: str, place: Path) -> None:
    """Builds `Dockerfile.<name>` as `image` and writes its archive. Raises BuildError."""
    with cache.locked("buildah"):
        base.ensure()
        with step(f"building {image} from Dockerfile.{name}"):
            buildah.build(REPOSITORY / f"Dockerfile.{name}", REPOSITORY, image)
            buildah.export(image, place)
