"""Where built things are kept between runs, and under which key.

Programs, image archives and the base image are expensive and depend on few inputs; each is kept under the hash of those
inputs, so an unchanged tree finds them and a changed one never finds a stale one. Entries appear by rename, complete or not
at all; a lock file per name makes a second process wait for the first instead of building the same thing twice.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


def folder() -> Path:
    """The cache folder: `$XDG_CACHE_HOME/juicefs-sidecar`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "juicefs-sidecar"


def key(*parts: str | bytes) -> str:
    """16 hexadecimal digits that change when a part, its length or the order of the parts changes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def tree_key(root: Path, paths: Iterable[str], suffixes: tuple[str, ...] = ()) -> str:
    """The key of files below `root`: names, executable bits and contents. A folder stands for its files (only those with one
    of the suffixes, if any are given), without byte code. Raises FileNotFoundError for a path that is not there."""
    parts: list[str | bytes] = []
    for name in sorted(paths):
        top = root / name
        files = sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top]
        for file in files:
            if "__pycache__" in file.parts or (top.is_dir() and suffixes and file.suffix not in suffixes):
                continue
            executable = "x" if file.stat().st_mode & 0o100 else "-"
            parts += [str(file.relative_to(root)), executable, file.read_bytes()]
    return key(*parts)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the machine-wide lock of this name; waits as long as another process holds it."""
    place = folder() / "locks" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def kept(kind: str, name: str, entry_key: str, make: Callable[[Path], None], keep: int = 2) -> Path:
    """The path of the cached file `kind/name-key`, made by `make(path)` when it is not there yet.

    `make` writes to a path beside the final one. Of entries with the same name the `keep` used last stay.
    """
    final = folder() / kind / f"{name}-{entry_key}"
    if final.exists():
        os.utime(final)
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{kind}-{name}"):
        if final.exists():
            return final
        keys = "[0-9a-f]" * len(entry_key)
        for killed in final.parent.glob(f".{name}-{keys}.unfinished"):
            _remove(killed)
        unfinished = final.with_name(f".{final.name}.unfinished")
        make(unfinished)
        unfinished.rename(final)
        others = [p for p in final.parent.glob(f"{name}-{keys}") if p != final]
        for old in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)[keep - 1 :]:
            _remove(old)
    return final


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
