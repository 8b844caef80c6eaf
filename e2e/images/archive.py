"""Small images written by hand: a docker-archive of one layer, without a registry or an image tool.

For programs that bring all they need: the pause container, busybox, CoreDNS, Redis, SeaweedFS. Equal input gives an equal file.
"""

import hashlib
import io
import json
import platform
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write(
    place: Path,
    name: str,
    files: Mapping[str, Path | bytes],
    config: Mapping[str, Any],
    links: Mapping[str, str] | None = None,
) -> None:
    """Writes the archive of an image `name` with these files (all executable, owned by root), links and a writable /tmp.

    `config` is the `config` object of the image specification: Entrypoint, Cmd, Env, User…
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for path, source in sorted(files.items()):
            _add(tar, path.lstrip("/"), source if isinstance(source, bytes) else source.read_bytes())
        for path, target in sorted((links or {}).items()):
            link = tarfile.TarInfo(path.lstrip("/"))
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for path in ("tmp", "data"):
            folder = tarfile.TarInfo(path)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(folder)
    content = layer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    image = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], **config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    image_json = json.dumps(image).encode()
    config_name = hashlib.sha256(image_json).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(place, "w") as tar:
        _add(tar, config_name, image_json)
        _add(tar, f"{digest}/layer.tar", content)
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _add(tar: tarfile.TarFile, path: str, content: bytes) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), 0o755
    tar.addfile(entry, io.BytesIO(content))


def with_libraries(program: Path) -> dict[str, Path | bytes]:
    """The program and the shared libraries that it loads, by their paths in the image; a static program stands alone."""
    files: dict[str, Path | bytes] = {f"usr/bin/{program.name}": program.resolve()}
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        found = re.search(r"(/\S+) \(0x[0-9a-f]+\)", line)
        if found:
            files[found[1].lstrip("/")] = Path(found[1]).resolve()
    return files


def pause(place: Path, name: str) -> None:
    """The container that holds a pod's namespaces: waits, reaps orphans, ends on TERM."""
    source = """#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void down(int s) { _exit(0); }
static void reap(int s) { while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) { signal(SIGINT, down); signal(SIGTERM, down); signal(SIGCHLD, reap); for (;;) pause(); }
"""
    program = place.with_name(place.name + ".program")
    compile_it = ["cc", "-x", "c", "-Os", "-static", "-s", "-o", str(program), "-"]
    subprocess.run(compile_it, input=source, text=True, check=True)
    write(place, name, {"pause": program.read_bytes()}, {"Entrypoint": ["/pause"]})
    program.unlink()


def busybox(place: Path, name: str, extra: Mapping[str, Path | bytes], config: Mapping[str, Any]) -> None:
    """Debian's static busybox with a link per tool, and other files."""
    tools = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    links = {f"bin/{tool}": "busybox" for tool in tools if tool != "busybox"}
    write(place, name, {"bin/busybox": Path("/bin/busybox"), **extra}, config, links)
