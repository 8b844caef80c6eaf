"""`jfs quota set|get|delete|list|check META-URL`: quotas of directories, users and groups, as the real client's command (format §10).

No mount is needed; mounted clients learn of a change within a heartbeat. Tables are those of the real client.
"""

import asyncio
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from jfs.errors import ConfigError, VolumeError

if TYPE_CHECKING:
    from jfs.format.setting import Setting
    from jfs.meta.model.quota import Quota, QuotaKey
    from jfs.meta.store.base import Store
    from jfs.meta.volume.quotas import Difference

log = logging.getLogger("jfs.quota")

_USAGE: Final = """\
usage: jfs quota COMMAND [options] META-URL

commands:
  set          limit a directory (--path), a user (--uid) or a group (--gid)
  get          show a quota
  delete, del  remove a limit
  list, ls     show all quotas
  check        compare kept usage with what is there; without --path: of all users and groups, and of every directory with a quota

options:
  --path PATH       directory of the volume
  --uid N, --gid N  user, group
  --capacity SIZE   limit of the space; a number is GiB, 0 is none
  --inodes N        limit of the number of files and directories, 0 is none
  --create          set: make the directory when it is missing
  --strict          set, check: count every inode instead of believing the usage kept for each directory
  --repair          check: put wrong usage right

Users' and groups' usage is kept from the first of their quotas on. Root's own files are counted, but never limited.

Examples:
  jfs quota set redis://host:6379/1 --path /dir1 --capacity 1 --inodes 100
  jfs quota set redis://host:6379/1 --uid 1000 --capacity 2
  jfs quota check redis://host:6379/1 --path /dir1 --repair
"""
_COMMANDS: Final = {"delete": "delete", "del": "delete", "list": "list", "ls": "list"} | {
    name: name for name in ("set", "get", "check")
}
_VALUED: Final = ("path", "uid", "gid", "capacity", "inodes")
_FLAGS: Final = {"create": ("set",), "strict": ("set", "check"), "repair": ("check",)}
_MAX_ID: Final = (1 << 32) - 1


class Request(NamedTuple):
    """A parsed command line. Limits are None where not given, -1 for none."""

    command: str
    url: str
    path: str = ""
    uid: int | None = None
    gid: int | None = None
    capacity: int | None = None
    inodes: int | None = None
    flags: frozenset[str] = frozenset()


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    if not arguments or any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(_USAGE)
        return 0
    request = parse(arguments)
    from jfs.cli.environment import take_meta_password

    return asyncio.run(_run(request, take_meta_password()))


def parse(arguments: list[str]) -> Request:
    """ConfigError, one sentence, when the command line cannot be meant."""
    from jfs.cli.format_options import split_arguments

    words, pairs = split_arguments(arguments, _takes_value)
    if not words or words[0] not in _COMMANDS:
        raise ConfigError(f"quota knows the commands set, get, delete, list and check, not {' '.join(words[:1])!r}")
    command = _COMMANDS[words[0]]
    if len(words) != 2:
        raise ConfigError(f"quota {command} needs one META-URL")
    given = {name: value or "" for name, value in pairs if name in _VALUED}
    flags = {name for name, value in pairs if name in _FLAGS and (value or "true").lower() in ("true", "1")}
    for name in flags:
        if command not in _FLAGS[name]:
            raise ConfigError(f"quota {command} has no option --{name}")
    if command != "set" and given.keys() & {"capacity", "inodes"}:
        raise ConfigError(f"quota {command} takes no limits")
    owners = [name for name in ("path", "uid", "gid") if name in given]
    if len(owners) > 1:
        raise ConfigError(f"--{owners[0]} and --{owners[1]} cannot be given together")
    if not owners and command in ("set", "get", "delete"):
        raise ConfigError(f"quota {command} needs --path, --uid or --gid")
    if "path" in given and not given["path"].startswith("/"):
        raise ConfigError("--path must be absolute: it begins with / at the volume's root")
    if "create" in flags and "path" not in given:
        raise ConfigError("--create is for --path")
    if command == "set" and not given.keys() & {"capacity", "inodes"}:
        raise ConfigError("quota set needs --capacity or --inodes")
    return Request(
        command,
        words[1],
        given.get("path", ""),
        _owner("uid", given),
        _owner("gid", given),
        _space(given),
        _inodes(given),
        frozenset(flags),
    )


def _takes_value(name: str) -> bool:
    if name not in _VALUED and name not in _FLAGS:
        raise ConfigError(f"quota has no option {name!r}; `jfs quota --help` lists them")
    return name in _VALUED


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise ConfigError(f"option {name}: {text!r} is not a whole number")
    return int(text)


def _owner(name: str, given: Mapping[str, str]) -> int | None:
    if name not in given:
        return None
    number = _whole(name, given[name])
    if not 0 < number <= _MAX_ID:
        raise ConfigError(f"option {name}: {number} cannot have a quota; it must be from 1 to {_MAX_ID}")
    return number


def _space(given: Mapping[str, str]) -> int | None:
    from jfs.mount.units import size

    return (size("capacity", given["capacity"], "G") or -1) if "capacity" in given else None


def _inodes(given: Mapping[str, str]) -> int | None:
    return (_whole("inodes", given["inodes"]) or -1) if "inodes" in given else None


async def _run(request: Request, password: str) -> int:
    from jfs.format.usable import check_usable
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting

    store = await connect(request.url, password=password)
    try:
        setting = await load_setting(store)
        check_usable(setting)
        if "create" in request.flags:
            await _make_directories(request, password)
        return await _COMMAND[request.command](store, setting, request)
    finally:
        await store.close()


async def _key(store: "Store", request: Request) -> "QuotaKey":
    from jfs.meta.model.quota import DIRECTORY, GROUP, USER, QuotaKey
    from jfs.meta.volume.quotas import find_directory

    if request.uid is not None:
        return QuotaKey(USER, request.uid)
    if request.gid is not None:
        return QuotaKey(GROUP, request.gid)
    return QuotaKey(DIRECTORY, await find_directory(store, request.path))


def _show(request: Request, quota: "Quota") -> None:
    from jfs.cli.tables import table

    if request.path:
        head, name = "Path", "/" + "/".join(part for part in request.path.split("/") if part not in ("", "."))
    elif request.uid is not None:
        head, name = "User ID", str(request.uid)
    else:
        head, name = "Group ID", str(request.gid)
    print(table((head, *_HEADER), [_row(name, quota)], _ALIGN))


_NO_LIMIT: Final = "unchanged"  # the real client's word, which scripts look for
_HEADER: Final = ("Size", "Used", "Use%", "Inodes", "IUsed", "IUse%")
_ALIGN: Final = "<" + ">" * len(_HEADER)


def _row(name: str, quota: "Quota") -> tuple[str, ...]:
    from jfs.cli.tables import size_text

    space, inodes = quota.max_space, quota.max_inodes
    return (
        name,
        size_text(space) if space > 0 else _NO_LIMIT,
        size_text(quota.used_space),
        f"{quota.used_space * 100 // space}%" if space > 0 else "",
        f"{inodes:,}" if inodes > 0 else _NO_LIMIT,
        f"{quota.used_inodes:,}",
        f"{quota.used_inodes * 100 // inodes}%" if inodes > 0 else "",
    )


async def _set(store: "Store", setting: "Setting", request: Request) -> int:
    from jfs.meta.volume.quotas import Limits, set_quota

    key = await _key(store, request)
    limits = Limits(request.capacity, request.inodes)
    _show(request, await set_quota(store, setting, key, limits, strict="strict" in request.flags))
    return 0


async def _make_directories(request: Request, password: str) -> None:
    """Make what is missing of the path, as a client of its own: a mount's root is made so, too."""
    from jfs.meta.connect import connect
    from jfs.meta.volume import Meta, MetaOptions

    async def delete_objects(id: int, size: int) -> None:
        raise VolumeError("making a directory deletes no objects")

    store = await connect(request.url, password=password)
    try:
        meta = await Meta.load(store, MetaOptions(no_bgjob=True, subdir=request.path), delete_objects=delete_objects)
    except BaseException:
        await store.close()
        raise
    await meta.close()


async def _get(store: "Store", setting: "Setting", request: Request) -> int:
    from jfs.meta.volume.quotas import get_quota

    quota = await get_quota(store, await _key(store, request))
    if quota is None:  # no failure, as with the real client
        log.warning("there is no such quota; `jfs quota list` shows those there are")
    else:
        _show(request, quota)
    return 0


async def _delete(store: "Store", setting: "Setting", request: Request) -> int:
    from jfs.meta.volume.quotas import delete_quota

    await delete_quota(store, await _key(store, request))
    return 0


async def _list(store: "Store", setting: "Setting", request: Request) -> int:
    from jfs.cli.tables import table
    from jfs.meta.volume.quotas import list_quotas

    rows = [_row(await _name(store, key), quota) for key, quota in (await list_quotas(store)).items()]
    if rows:
        print(table(("Path/ID", *_HEADER), sorted(rows), _ALIGN))
    return 0


async def _name(store: "Store", key: "QuotaKey") -> str:
    from jfs.meta.model.quota import DIRECTORY, USER
    from jfs.meta.volume.quotas import path_of

    if key.what == DIRECTORY:
        return await path_of(store, key.id)
    return f"{'uid' if key.what == USER else 'gid'}:{key.id}"


async def _check(store: "Store", setting: "Setting", request: Request) -> int:
    from jfs.meta.model.quota import DIRECTORY
    from jfs.meta.volume import quotas

    strict, repair = "strict" in request.flags, "repair" in request.flags
    asked_directory = bool(request.path)
    asked_owners = request.uid is not None or request.gid is not None
    found: list[Difference] = []
    if not asked_owners:
        keys = [await _key(store, request)] if asked_directory else await quotas.list_quotas(store)
        for key in keys:
            if key.what == DIRECTORY:
                one = await quotas.check_directory(store, setting, key.id, strict=strict, repair=repair)
                found += [one] if one else []
    if not asked_directory and setting.user_group_quota:
        found += await quotas.check_owners(store, repair=repair)
    elif asked_owners:
        raise VolumeError("no usage of users and groups is kept in this volume: `jfs quota set --uid` turns it on")
    for difference in found:
        log.warning("%s", await _difference(store, difference))
    if found and not repair:
        raise VolumeError("the usage of quotas is inconsistent: repair it with `jfs quota check --repair`")
    if asked_directory or asked_owners:
        quota = await quotas.get_quota(store, await _key(store, request))
        if quota is not None:
            _show(request, quota)
    return 0


async def _difference(store: "Store", difference: "Difference") -> str:
    from jfs.cli.tables import size_text

    name, kept, actual = await _name(store, difference.key), difference.kept, difference.actual
    there = f"usage({actual.inodes:,}, {size_text(actual.space)})"
    if kept is None:
        return f"{name}: quota not found, actual {there}"
    return f"{name}: usage({kept.used_inodes:,}, {size_text(kept.used_space)}) != actual {there}"


_COMMAND: Final = {"set": _set, "get": _get, "delete": _delete, "list": _list, "check": _check}
