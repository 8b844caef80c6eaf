"""`jfs mount META-URL MOUNTPOINT`: the real client's flags and defaults (format §10.1); also `mount.juicefs` for fstab and mount(8).

Exit status 0 only when mounted (background) or after a clean end (foreground); else 1 and one sentence on standard error.
"""

import logging
import os
import sys
from functools import partial
from typing import Final

from jfs.cli.environment import SECRET_VARIABLES, take_meta_password, take_rsa_passphrase
from jfs.errors import ConfigError, JfsError

_USAGE: Final = """\
usage: jfs mount [options] META-URL MOUNTPOINT

Mounts the volume in META-URL (redis://, sqlite3://, …) at the directory MOUNTPOINT. A password of the database is better
given in the environment variable META_PASSWORD than in the URL.

  -d, --background        return once mounted
  -f, --foreground        stay until unmounted (default)
  -o OPTION[,OPTION…]     options of mount(8), and any flag below without its dashes
  -v, --verbose, --debug  log more
"""
_VERBOSE: Final = ("v", "verbose", "debug", "trace")
_QUIET: Final = ("q", "quiet")
_SHORT: Final = {"d": "background", "f": "foreground"}


def _help() -> str:
    from jfs.mount.config import OPTIONS, REFUSED, WITHOUT_EFFECT

    lines = [_USAGE]
    for option in OPTIONS.values():
        if option.name not in ("background", "foreground"):
            flag = f"--{option.name}" + ("" if option.is_flag else " VALUE")
            lines.append(f"  {flag:<30}{option.help}")
    lines += ["", "accepted, without effect yet: " + ", ".join(sorted(WITHOUT_EFFECT))]
    lines += ["not supported yet: " + ", ".join(sorted(REFUSED))]
    return "\n".join(lines) + "\n"


def split(arguments: list[str]) -> tuple[list[str], list[tuple[str, str | None]], int]:
    """(positional arguments, options as the table of `mount.config` takes them, log level). ConfigError."""
    from jfs.mount.config import OPTIONS, REFUSED, WITHOUT_EFFECT, refuse

    words: list[str] = []
    options: list[tuple[str, str | None]] = []
    level = logging.INFO
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            words += waiting
            break
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, separator, given = word.lstrip("-").partition("=")
        value: str | None = given if separator else None
        if not word.startswith("--"):
            name = _SHORT.get(name, name)
        if name in _VERBOSE or name in _QUIET:
            level = logging.DEBUG if name in _VERBOSE else logging.WARNING
            continue
        if name in REFUSED:  # now: whether it takes a value is not known
            raise refuse(name)
        takes_value = name in ("o", "log-level") or (name in OPTIONS and not OPTIONS[name].is_flag)
        if (takes_value or WITHOUT_EFFECT.get(name)) and value is None:
            if not waiting:
                raise ConfigError(f"option {word} needs a value")
            value = waiting.pop(0)
        if name == "log-level":
            level = _level(value or "")
            continue
        options.append((name, value))
    return words, options, level


def _level(text: str) -> int:
    level = logging.getLevelNamesMapping().get(text.upper())
    if level is None:
        raise ConfigError(f"option log-level: {text!r} is none of debug, info, warning, error")
    return level


def main(arguments: list[str]) -> int:
    """Entry of `jfs mount`."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(_help())
        return 0
    try:
        return _mount(arguments)
    except JfsError as error:
        print(f"jfs: {error}", file=sys.stderr)
        return 1


def _mount(arguments: list[str]) -> int:
    from jfs.mount import config as configuration

    words, options, level = split(arguments)
    if len(words) != 2:
        raise ConfigError("jfs mount needs two arguments: META-URL MOUNTPOINT; see `jfs mount --help`")
    config = configuration.parse(options)
    if config.background and config.foreground:
        raise ConfigError("--background and --foreground exclude each other")
    if config.supervised and not config.background:
        raise ConfigError("--supervised needs --background: in the foreground your terminal would be its supervisor")

    from jfs.mount import logs, mountpoint, process, traces
    from jfs.mount.serve import MountRequest

    request = MountRequest(
        _absolute(words[0]),
        mountpoint.check(words[1], force=config.force),
        config,
        password=take_meta_password(),
        passphrase=take_rsa_passphrase(),
    )
    traces.wipe(SECRET_VARIABLES)
    boot = None
    if config.update_fstab:
        from jfs.mount import fstab

        line = fstab.plan(request.meta_url, request.mountpoint, configuration.expand(options))
        boot = partial(fstab.update, line)
    if config.background:
        status = process.background(request, os.path.abspath(config.log or logs.default_file()), level)
        if boot is not None and not status:
            boot()
        return status
    if config.log:
        logs.to_file(config.log, level)
    else:
        logs.to_stderr(level)
    return process.foreground(request, boot)


def _absolute(url: str) -> str:
    """A relative SQLite path means the present directory, which a background mount leaves."""
    scheme, separator, rest = url.partition("://")
    if scheme != "sqlite3" or not separator or rest.startswith("/") or not rest:
        return url
    return f"sqlite3://{os.path.abspath(rest)}"


def mount_helper(arguments: list[str]) -> int:
    """Entry of `mount.juicefs META-URL MOUNTPOINT [-sfnvrw] [-t TYPE] [-N NAMESPACE] [-o OPTIONS]` (mount(8), external helpers):
    a background mount."""
    kept: list[str] = ["-d"]
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word in ("-t", "-N"):
            waiting[:1] = []
        elif word in ("-f", "--fake"):
            return 0
        elif word == "-r":
            kept += ["-o", "ro"]
        elif word not in ("-s", "-n", "-v", "-w"):
            kept.append(word)
            if word == "-o" and waiting:
                kept.append(waiting.pop(0))
    return main(kept)
