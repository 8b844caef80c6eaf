"""`jfs config META-URL`: shows the setting of a volume, or changes what is given of it (format §2.3, §10). Mounted clients adopt a
change with their next heartbeat.

What may surprise is asked for first; --yes answers, --force passes checks by. The record is written only when it is still the one
that was decided on.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jfs.errors import ConfigError, VolumeError

if TYPE_CHECKING:
    from jfs.format.setting import Setting
    from jfs.meta.store.base import Store

_USAGE: Final = """\
usage: jfs config [options] META-URL

Without options: shows the setting of a volume, without its secrets. With options: changes what is given.

Examples:
  jfs config redis://host:6379/1
  jfs config redis://host:6379/1 --capacity 100 --inodes 10000000
  jfs config redis://host:6379/1 --trash-days 7 --yes

options:
"""
_PASSED: Final = ("storage", "bucket", "access-key", "secret-key", "session-token", "storage-class")


class Option(NamedTuple):
    """Member of the setting, how its text is read (None: true or false), help."""

    member: str
    parse: Callable[[str, str], Any] | None
    help: str


def _options() -> dict[str, Option]:
    from jfs.cli.format_options import VALUES

    def count(option: str, text: str) -> int:
        if not text.isascii() or not text.isdecimal():
            raise ConfigError(f"option {option}: {text!r} is not a whole number")
        return int(text)

    def tier(option: str, text: str) -> int:
        from jfs.format.tiers import LAST

        if not text.isascii() or not text.isdecimal() or int(text) > LAST:
            raise ConfigError(f"option {option}: there are tiers 0 to {LAST}, not {text!r}")
        return int(text)

    def seconds(option: str, text: str) -> int:
        from jfs.mount.units import duration

        return int(duration(option, text))

    def version(option: str, text: str) -> str:
        from jfs.format.versions import parse_version

        if text and parse_version(text) is None:
            raise ConfigError(f"option {option}: {text!r} is not a version; write it like 1.2.0")
        return text

    known = {
        "capacity": Option("Capacity", VALUES["capacity"][1], VALUES["capacity"][2]),
        "inodes": Option("Inodes", count, "limit of the number of files [0: none]"),
        "trash-days": Option("TrashDays", count, "days that removed files are kept"),
        "dir-stats": Option("DirStats", None, "keep the usage of each directory; --dir-stats=false to stop"),
        "user-group-quota": Option("UserGroupQuota", None, "keep the usage of users and groups, and their quotas"),
        "changelog": Option("ChangeLog", None, "log every change of metadata for programs that follow the volume"),
        "changelog-max-age": Option(
            "ChangeLogMaxAge", seconds, "how long entries of the change log are kept, like 2h [0: for ever]"
        ),
        "changelog-max-lines": Option("ChangeLogMaxLines", count, "how many of them are kept [0: all]"),
        "tag": Option("Tag", lambda _, text: text, "tags of new objects, like a=b&c=d"),
        "tier": Option("Tier", tier, "the storage tier, 0 to 3, that --storage-class and --tag are for [0]"),
        "enable-acl": Option("EnableACL", None, "POSIX ACLs, for good"),
        "min-client-version": Option(
            "MinClientVersion", version, "oldest client that may use the volume; never lowered"
        ),
        "max-client-version": Option("MaxClientVersion", version, "newest client that may use the volume"),
        "upload-limit": Option("UploadLimit", count, "default of a client's upload rate in Mbit/s [0: none]"),
        "download-limit": Option("DownloadLimit", count, "default of a client's download rate in Mbit/s [0: none]"),
    }
    return known | {name: Option(VALUES[name][0], VALUES[name][1], VALUES[name][2]) for name in _PASSED}


_SWITCHES: Final = {
    "yes": "answer every question with yes",
    "force": "skip the checks of the storage, and answer every question with yes",
    "encrypt-secret": "encrypt secrets that are stored plainly",
}
# Options of the real client for what this one does not have.
_REFUSED: Final = {
    "ranger-rest-url": "Apache Ranger permissions",
    "ranger-service": "Apache Ranger permissions",
    "kerberos-config-file": "Kerberos",
}
_LOG_AGE: Final = 7200  # seconds that entries are kept when the log is turned on
_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    if any(word in ("-h", "--help") for word in arguments):
        lines = [_USAGE.rstrip("\n")]
        for name, option in _options().items():
            lines.append(f"  {'--' + name + (' VALUE' if option.parse else ''):<30}{option.help}")
        lines += [f"  {'--' + name:<30}{text}" for name, text in _SWITCHES.items()]
        sys.stdout.write("\n".join(lines) + "\n\nnot supported: " + ", ".join(f"--{name}" for name in _REFUSED) + "\n")
        return 0
    from jfs.cli.environment import take_meta_password, take_storage_keys

    url, given, switches = parse(arguments)
    password = take_meta_password()
    for name, value in take_storage_keys().items():
        if given.keys() & set(_PASSED):
            given.setdefault(name, value)
    return asyncio.run(_run(url, password, given, switches))


def parse(arguments: list[str]) -> tuple[str, dict[str, Any], set[str]]:
    """META-URL, values by option, and switches; ConfigError names what is wrong."""
    from jfs.cli.format_options import split_arguments

    options = _options()

    def valued(name: str) -> bool:
        if name in _REFUSED:
            raise ConfigError(f"option {name}: {_REFUSED[name]} cannot be configured by this client")
        if name not in options and name not in _SWITCHES and name != "y":
            raise ConfigError(f"config has no option {name!r}; `jfs config --help` lists them")
        return name in options and options[name].parse is not None

    words, pairs = split_arguments(arguments, valued)
    if len(words) != 1:
        raise ConfigError("config needs one META-URL")
    given: dict[str, Any] = {}
    switches: set[str] = set()
    for name, value in pairs:
        if name in options and (read := options[name].parse) is not None:
            given[name] = read(name, value or "")
            continue
        on = _TRUTH.get((value or "true").lower())
        if on is None:
            raise ConfigError(f"option {name} is true or false, not {value!r}")
        if name in options:
            given[name] = on
        elif on:
            switches.add("yes" if name == "y" else name)
    return words[0], given, switches


async def _run(url: str, password: str, given: dict[str, Any], switches: set[str]) -> int:
    from jfs.format.usable import check_identity
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting

    store = await connect(url, password=password)
    try:
        old = await load_setting(store)
        check_identity(old, old.uuid)
        if not given and "encrypt-secret" not in switches:
            print(json.dumps(old.redacted(), indent=2, ensure_ascii=False))
            return 0
        new = changed(old, given)
        if "encrypt-secret" in switches or (new.members != old.members and old.members.get("KeyEncrypted")):
            new = new.with_sealed_secrets(os.urandom)
        lines = differences(old, new, given)
        if not lines and new.members == old.members:
            print("Nothing changed.")
            return 0
        await _ask(store, old, new, assumed=bool(switches & {"yes", "force"}))
        if given.keys() & set(_PASSED) and "force" not in switches:
            await _try_storage(new)
        await _write(store, old, new)
        print("\n".join(lines) if lines else "The secrets are encrypted now.")
    finally:
        await store.close()
    return 0


def changed(old: "Setting", given: Mapping[str, Any]) -> "Setting":
    """Record *old* with what was *given*; ConfigError when the rules forbid it (format §10.2)."""
    from jfs.cli.formatting import changed_record
    from jfs.format.changes import acl_members
    from jfs.format.tiers import MIN_VERSION
    from jfs.format.versions import is_older

    options = _options()
    tiers = changed_tiers(old, given)
    by_tier = "tier" in given
    given = {name: value for name, value in given.items() if name not in ("tier", "tag", "storage-class")}
    new = changed_record(old, old.name, {options[name].member: given[name] for name in _PASSED if name in given})
    members = {options[name].member: value for name, value in given.items() if name not in _PASSED}
    lowest = members.get("MinClientVersion")
    if lowest is not None and old.min_client_version and (not lowest or is_older(lowest, old.min_client_version)):
        raise ConfigError(f"min-client-version cannot be lowered from {old.min_client_version} to {lowest or 'none'}")
    if tiers is not None:
        members["Tiers"] = tiers
        if by_tier and "MinClientVersion" not in members and is_older(old.min_client_version or "0", MIN_VERSION):
            members["MinClientVersion"] = MIN_VERSION
    if members.get("ChangeLog") and not old.change_log:
        members.setdefault("ChangeLogMaxAge", old.change_log_age or _LOG_AGE)
    if "EnableACL" in members:
        new = new.replaced(**{k: v for k, v in members.items() if k != "EnableACL"})
        return new.replaced(**acl_members(new, members["EnableACL"]))
    return new.replaced(**members)


def _duration_text(seconds: int) -> str:
    """As the real client writes it: `2h0m0s`, `1m30s`."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    text = f"{hours}h" if hours else ""
    return text + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"


def changed_tiers(old: "Setting", given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The member Tiers with what is *given* of one; None when nothing is. What is given without a tier is that of tier 0, as with the
    real client, which leaves the member StorageClass alone. ConfigError when nothing is said of the tier."""
    from jfs.format.tiers import Tier, with_tier

    if not given.keys() & {"tier", "tag", "storage-class"}:
        return None
    number = int(given.get("tier", 0))
    if "tier" in given and not given.keys() & {"tag", "storage-class"}:
        raise ConfigError("option tier needs --storage-class or --tag, what objects of the tier get")
    tier = old.tiers.get(number, Tier(old.storage_class if not number else ""))
    tier = Tier(given.get("storage-class", tier.storage_class), given.get("tag", tier.tag))
    return with_tier(old.members.get("Tiers"), number, tier)


def differences(old: "Setting", new: "Setting", given: Mapping[str, Any]) -> list[str]:
    """What changes, a line each as the real client prints it; secrets are not shown."""
    from jfs.cli.tables import size_text
    from jfs.format.setting import SECRETS

    names = {option.member: name for name, option in _options().items() if name not in _PASSED}
    names |= {"Storage": "storage", "Bucket": "bucket", "AccessKey": "access-key", "SecretKey": "secret-key"}
    names |= {"SessionToken": "session-token"}

    def text(member: str, setting: "Setting") -> str:
        value = setting.members.get(member)
        if member in SECRETS:
            return "removed" if value else ""
        if member == "Capacity":
            return size_text(value or 0)
        if member in ("UploadLimit", "DownloadLimit"):
            return f"{float(value or 0):.1f} Mbps"
        if isinstance(value, bool) or member in ("DirStats", "UserGroupQuota", "EnableACL", "ChangeLog"):
            return "true" if value else "false"
        if member == "ChangeLogMaxAge":
            return _duration_text(value or 0) + (
                " (default)" if setting is new and "changelog-max-age" not in given else ""
            )
        return str(value or ("" if member not in ("Inodes", "TrashDays", "ChangeLogMaxLines") else 0))

    lines = []
    for member, name in names.items():
        is_given_secret = member in SECRETS and name in given
        if is_given_secret or (
            member not in SECRETS and (old.members.get(member) or 0) != (new.members.get(member) or 0)
        ):
            lines.append(f"{name:>10}: {text(member, old)} -> {text(member, new)}")
    return [*_tier_lines(old, new, given), *lines]


def _tier_lines(old: "Setting", new: "Setting", given: Mapping[str, Any]) -> list[str]:
    """What changes of a tier."""
    from jfs.format.tiers import Tier

    number = given.get("tier", 0)
    tier, former = new.tiers.get(number, Tier()), old.tiers.get(number)
    texts = {"storage-class": tier.storage_class, "tag": tier.tag}
    if "tier" not in given:
        before = former or Tier(old.storage_class)
        befores = {"storage-class": before.storage_class, "tag": before.tag}
        return [f"{name:>10}: {befores[name]} -> {text}" for name, text in texts.items() if text != befores[name]]
    lines = [f"set tier {number} {name}: {text}" for name, text in texts.items() if name in given]
    if former is None:
        return lines
    changes = [
        f"{what}: {before} => {after}"
        for what, before, after in zip(("storage class", "tag"), former, tier, strict=True)
        if before != after
    ]
    return ["existing tier will be overwritten: ", f"tier: {number}", *changes, *lines]


async def _ask(store: "Store", old: "Setting", new: "Setting", *, assumed: bool) -> None:
    """Put questions on what may surprise; VolumeError when one is not answered with yes."""
    questions = await _doubts(store, old, new)
    if not questions or assumed:
        return
    for question in questions:
        print(f"WARNING: {question}", file=sys.stderr)
    print("Proceed anyway? [y/N]: ", end="", file=sys.stderr, flush=True)
    answer = await asyncio.to_thread(sys.stdin.readline)
    if answer.strip().lower() not in ("y", "yes"):
        raise VolumeError("nothing was changed: the question was not answered with yes (--yes does)")


async def _doubts(store: "Store", old: "Setting", new: "Setting") -> list[str]:
    from jfs.cli.tables import size_text
    from jfs.format.constants import CLIENT_VERSION
    from jfs.format.versions import is_older
    from jfs.meta.operations.rules import TOTAL_INODES, USED_SPACE

    space, inodes = await store.get(USED_SPACE, TOTAL_INODES)
    found = []
    if new.capacity != old.capacity and 0 < new.capacity < (space or 0):
        found.append(f"The new capacity is below the used space, {size_text(space)}: nothing more can be written.")
    if new.inodes != old.inodes and 0 < new.inodes < (inodes or 0):
        found.append(f"The new limit is below the {inodes:,} inodes in use: nothing more can be made.")
    if old.trash_days and not new.trash_days:
        found.append("The trash is emptied, and what is removed from now on is gone at once.")
    if new.min_client_version != old.min_client_version and is_older(CLIENT_VERSION, new.min_client_version):
        found.append(
            f"Clients below version {new.min_client_version} are refused, this one ({CLIENT_VERSION}) as well."
        )
    if new.max_client_version != old.max_client_version and is_older(new.max_client_version, CLIENT_VERSION):
        found.append(
            f"Clients above version {new.max_client_version} are refused, this one ({CLIENT_VERSION}) as well."
        )
    if new.storage != old.storage or new.bucket != old.bucket:
        found.append("The data of the volume must be in the new storage already: nothing is copied.")
    return found


async def _try_storage(setting: "Setting") -> None:
    from jfs.object.connect import open_volume
    from jfs.object.selftest import probe

    if os.environ.get("JFS_NO_CHECK_OBJECT_STORAGE"):
        return
    storage = open_volume(setting, names_only=True)
    try:
        await probe(storage)
    finally:
        await storage.close()


async def _write(store: "Store", old: "Setting", new: "Setting") -> None:
    """Write the record, and count what the volume keeps from now on."""
    from jfs.meta.model.keys import SettingKey
    from jfs.meta.operations import journal
    from jfs.meta.store.base import Tx
    from jfs.meta.volume.quotas import enable_owners
    from jfs.meta.volume.summary import count_directories

    async def operation(tx: Tx) -> None:
        (raw,) = await tx.get(SettingKey())
        if raw is None or type(old).parse(raw).members != old.members:
            raise VolumeError("the setting was changed by another client meanwhile: nothing was changed, run it again")
        tx.put(SettingKey(), new.encode())

    await store.run(operation)
    if new.user_group_quota and not old.user_group_quota:
        await enable_owners(store)
    if new.dir_stats and not old.dir_stats:
        if store.change_log is not None:

            async def begin(tx: Tx) -> None:
                journal.note(tx, "INIT_ENABLE_DIRSTATS()")

            await store.run(begin)
        await count_directories(store)
