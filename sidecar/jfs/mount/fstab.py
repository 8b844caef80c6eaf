"""`jfs mount --update-fstab`: the line of /etc/fstab that mounts the same volume at boot, and the helper that mount(8) looks for.

As the real client (format §10.1) it makes the line `META-URL MOUNTPOINT juicefs _netdev[,OPTIONS] 0 0` or renews the one that is
there, and links /sbin/mount.juicefs. Invariant: the file is replaced by rename, so it is the old or the new one at any instant;
a line that others wrote is never changed; no password gets into it, since everybody may read it. Called by one process
once the volume is mounted.
"""

import os
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from jfs.errors import ConfigError
from jfs.mount.traces import has_password

FSTAB: Final = "/etc/fstab"
HELPER: Final = "/sbin/mount.juicefs"
_KIND: Final = "juicefs"
_ONLY_NOW: Final = ("update-fstab", "background", "foreground", "force")  # not what a boot needs
_ESCAPED: Final = {" ": r"\040", "\t": r"\011", "\n": r"\012", "\\": r"\134"}  # fstab(5), getmntent(3)


def plan(url: str, mountpoint: str, options: Iterable[tuple[str, str | None]], *, path: str = FSTAB) -> str:
    """The line that `update` is to write once the volume is mounted. ConfigError when that cannot be, before anything is done."""
    if os.geteuid():
        raise ConfigError(f"--update-fstab changes {FSTAB}, which only root may: leave it out, or mount as root")
    if has_password(url):
        raise ConfigError(
            f"--update-fstab would write the password in the metadata address into {FSTAB}, which everybody can read: "
            "leave it out, and give the password in META_PASSWORD, to a mount at boot by a systemd unit with an environment file"
        )
    wanted = line(url, mountpoint, options)
    with_line(_content(path), wanted)
    return wanted


def _content(path: str) -> str:
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--update-fstab cannot read {path}: {error}") from error


def line(url: str, mountpoint: str, options: Iterable[tuple[str, str | None]]) -> str:
    """The line for a mount with these options, in the order given, the last of each name. ConfigError for a value with a comma,
    which fstab(5) has no way to write."""
    chosen: dict[str, str | None] = {}
    for name, value in options:
        if name not in _ONLY_NOW and name != "_netdev":
            chosen.pop(name, None)
            chosen[name] = value
    words = ["_netdev"]
    for name, value in chosen.items():
        if value is not None and "," in value:
            raise ConfigError(
                f"--update-fstab cannot write option {name}: its value has a comma, which separates options"
            )
        words.append(name if value is None else f"{name}={value}")
    return " ".join((_escape(url), _escape(mountpoint), _KIND, _escape(",".join(words)), "0", "0"))


def _escape(text: str) -> str:
    return "".join(_ESCAPED.get(letter, letter) for letter in text)


def with_line(text: str, wanted: str) -> str:
    """The content of an fstab with this line, in place of the one with the same source and mountpoint. ConfigError when something
    else is mounted there."""
    source, mountpoint = wanted.split(" ", 2)[:2]
    lines = text.splitlines()
    for at, one in enumerate(lines):
        fields = one.split()
        if len(fields) < 3 or fields[0].startswith("#") or fields[1] != mountpoint:
            continue
        if fields[0] != source or fields[2] != _KIND:
            raise ConfigError(f"{FSTAB} mounts something else at {mountpoint} (line {at + 1}): remove that line first")
        lines[at] = wanted
        return "\n".join(lines) + "\n"
    return "\n".join([*lines, wanted]) + "\n"


def update(wanted: str, *, path: str = FSTAB, helper: str = HELPER) -> None:
    """Write the line, and make the helper when there is none. ConfigError."""
    try:
        _write(path, wanted)
        _link(helper)
    except OSError as error:
        raise ConfigError(f"--update-fstab failed: {error}; the volume stays mounted") from error


def _write(path: str, wanted: str) -> None:
    file = Path(os.path.realpath(path))
    text = _content(path)
    mode = file.stat().st_mode & 0o7777 if file.exists() else 0o644
    changed = with_line(text, wanted)
    if changed == text:
        return
    fd, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(fd, "w") as new:
            new.write(changed)
            os.fchmod(fd, mode)
            new.flush()
            os.fsync(fd)
        os.rename(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def _link(helper: str) -> None:
    if os.path.lexists(helper):  # ours, the real client's, or the administrator's
        return
    ours = os.path.join(sysconfig.get_path("scripts"), "mount.juicefs")
    if not os.path.exists(ours):
        raise ConfigError(f"{ours} is missing, so mount(8) cannot mount by {FSTAB}: link {helper} to a mount.juicefs")
    os.symlink(ours, helper)
