"""A stand-in for the Dockerfiles' base image `debian:bookworm-slim`, made from Debian's packages where no registry is reached.

debootstrap's minimal system without what the real slim image leaves out too. A machine behind an inspecting proxy trusts
a certificate authority of its own: its bundle and pip configuration go in here, so that the Dockerfiles need not know.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from e2e import cache
from e2e.images import buildah
from e2e.progress import step

NAME = "docker.io/library/debian:bookworm-slim"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
SECURITY = os.environ.get("DEBIAN_SECURITY_MIRROR", "http://deb.debian.org/debian-security")
# The machine's own files that builds need to reach the package registries.
HOST_FILES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pip.conf"))
_SOURCES = f"""deb {MIRROR} bookworm main
deb {MIRROR} bookworm-updates main
deb {SECURITY} bookworm-security main
"""
# What the real slim image leaves out, now and in later installations.
_WITHOUT = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian")
_DPKG = "".join(f"path-exclude=/{folder}/*\n" for folder in _WITHOUT)
_EMPTY = ("var/cache/apt", "var/lib/apt/lists", "var/log", "tmp")


def key() -> str:
    """Changes with this recipe and the machine's files."""
    contents = [file.read_bytes() if file.exists() else b"" for file in HOST_FILES]
    return cache.key(Path(__file__).read_bytes(), MIRROR, SECURITY, *contents)


def ensure() -> None:
    """Makes the image in buildah's store unless it is there."""
    keyed = f"localhost/base:{key()}"
    if buildah.has(keyed) and buildah.has(NAME):
        return
    with cache.locked("base-image"), step(f"making a stand-in for {NAME} with debootstrap"):
        place = cache.folder() / "base"
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as folder:
            root = Path(folder) / "root"
            _bootstrap(root)
            _trim(root)
            container = buildah.run("from", "scratch").strip()
            buildah.run("add", "--quiet", container, str(root), "/")
            buildah.run("config", "--cmd", "bash", container)
            buildah.run("commit", "--quiet", "--rm", container, NAME)
            buildah.run("tag", NAME, keyed)


def _bootstrap(root: Path) -> None:
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root), MIRROR]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        log = root / "debootstrap" / "debootstrap.log"
        said = log.read_text() if log.exists() else done.stdout + done.stderr
        raise buildah.BuildError("debootstrap failed:\n" + "\n".join(said.splitlines()[-20:]))


def _trim(root: Path) -> None:
    for name in _WITHOUT:
        _clear(root / name)
    for name in _EMPTY:
        _clear(root / name)
    (root / "etc/apt/sources.list").write_text(_SOURCES)
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(_DPKG)
    for file in HOST_FILES:
        if file.exists():
            shutil.copyfile(file, root / str(file).lstrip("/"))


def _clear(folder: Path) -> None:
    """Removes what is in the folder, not the folder."""
    for entry in folder.iterdir() if folder.exists() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
