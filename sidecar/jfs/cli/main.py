"""Entry of `jfs`: global options, then one command, whose module is imported only when it runs.

Invariant: whatever goes wrong ends as one sentence on standard error and exit status 1 (2 for a command line that cannot be
parsed, as argparse has it); a traceback is shown with --debug only. Start-up is a few milliseconds, because `jfs ready` runs
every second in a pod: nothing but the standard library's lightest parts is imported here.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final, NamedTuple


class Command(NamedTuple):
    """Where a command lives and what its one line of help says; hidden ones have none."""

    module: str
    help: str = ""


COMMANDS: Final = {
    "format": Command("jfs.cli.format", "create a volume, or change the settings of one"),
    "mount": Command("jfs.cli.mount", "mount a volume"),
    "umount": Command("jfs.cli.umount", "unmount a volume"),
    "status": Command("jfs.cli.status", "show a volume's setting, sessions and usage"),
    "info": Command("jfs.cli.info", "show what files of a mount consist of"),
    "rmr": Command("jfs.cli.rmr", "remove directory trees, in a mount or without one"),
    "config": Command("jfs.cli.config", "show or change a volume's setting"),
    "quota": Command("jfs.cli.quota", "set, show and check quotas of directories, users and groups"),
    "fsck": Command("jfs.cli.fsck", "check a volume, and repair what can be"),
    "gc": Command("jfs.cli.gc", "find unused objects; delete them, compact chunks"),
    "compact": Command("jfs.cli.compact", "rewrite fragmented files of a mount"),
    "warmup": Command("jfs.cli.warmup", "bring files of a mount into its cache, or drop them from it"),
    "clone": Command("jfs.cli.clone", "copy a file or tree of a mount without copying data"),
    "summary": Command("jfs.cli.summary", "show how much lies below a directory of a mount"),
    "restore": Command("jfs.cli.restore", "take removed entries out of the trash"),
    "tier": Command("jfs.cli.tier", "show the storage tiers of a volume, change those of files"),
    "changelog": Command("jfs.cli.changelog", "follow the change log of a volume"),
    "dump": Command("jfs.cli.dump", "write the metadata of a volume into a file"),
    "load": Command("jfs.cli.load", "bring a dump into an empty database"),
    "stats": Command("jfs.cli.stats", "show what a mount is doing"),
    "profile": Command("jfs.cli.profile", "show which operations of a mount take the time"),
    "bench": Command("jfs.cli.bench", "measure a directory with big and small files"),
    "objbench": Command("jfs.cli.objbench", "check and measure an object storage"),
    "doctor": Command("jfs.cli.doctor", "explain why a pod's volume is not ready (needs a cluster)"),
    "destroy": Command("jfs.cli.destroy", "remove a volume with all its data"),
    "version": Command("jfs.cli.version", "show the version"),
    "sidecar": Command("jfs.sidecar.supervisor", "mount a pod's volumes, told by the node service"),
    "ready": Command("jfs.sidecar.ready", "tell whether a pod's volumes are mounted (startup probe)"),
    "worker": Command("jfs.cli.worker"),
    "zygote": Command("jfs.cli.zygote"),
}
# Commands of the real client that this one does not have.
_ABSENT: Final = "debug gateway mdtest sync webdav"
_USAGE: Final = """\
usage: jfs [-v | -q | --log-level LEVEL] [--no-color] COMMAND [arguments]

JuiceFS volumes without the JuiceFS client.

commands:
{commands}

options:
  -v, --verbose, --debug  log more, and show where an error comes from
  -q, --quiet             log warnings and errors only
  --log-level LEVEL       debug, info, warning or error
  -V, --version           show the version

Try it in ten seconds:
  jfs format sqlite3://demo.db demo && jfs mount -d sqlite3://demo.db /mnt
`jfs COMMAND --help` tells more about a command.
"""
_LEVELS: Final = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}
# Global options of the real client that change nothing here, and whether they take a value.
_HARMLESS: Final = {"--no-agent": False, "--no-color": False, "--log-id": True}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    level = ""
    while words and words[0].startswith("-"):
        word, separator, value = words.pop(0).partition("=")
        if word in ("-h", "--help"):
            sys.stdout.write(usage())
            return 0
        if word in ("-V", "--version"):
            words = ["version"]
            break
        if word in ("-v", "--verbose", "--debug", "--trace"):
            level = "debug"
        elif word in ("-q", "--quiet"):
            level = "warning"
        elif word == "--log-level" or _HARMLESS.get(word):
            if not separator:
                if not words:
                    return fail(f"option {word} needs a value")
                value = words.pop(0)
            if word == "--log-level":
                if value.lower() not in _LEVELS:
                    return fail(f"option --log-level: {value!r} is none of debug, info, warning, error")
                level = value.lower()
        elif word not in _HARMLESS:
            return fail(f"unknown option {word}; `jfs --help` lists them")
    if not words:
        sys.stderr.write(usage())
        return 2
    name = words.pop(0)
    command = COMMANDS.get(name)
    if command is None:
        if name in _ABSENT.split():
            return fail(f"the command {name} of JuiceFS is not part of this client")
        return fail(f"unknown command {name!r}; `jfs --help` lists them")
    if name == "mount" and level:  # it sets up its own log
        words.insert(0, f"--log-level={level}")
    elif level:
        import logging

        logging.basicConfig(level=_LEVELS[level], format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return run(import_module(command.module).main, words, traceback=level == "debug")


def run(command: Callable[[list[str]], int], words: list[str], *, traceback: bool) -> int:
    """Call a command; its JfsError becomes one sentence, with *traceback* below it when asked for."""
    from jfs.errors import JfsError

    try:
        return command(words)
    except JfsError as error:
        if traceback:
            from traceback import print_exc

            print_exc()
        if "--stdin" in words:  # a program shows the sentence as its own
            print(error, file=sys.stderr)
            return 1
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # what reads our output has gone: nothing more to say
        return 1


def fail(sentence: str) -> int:
    """Say what is wrong; exit status 1."""
    print(f"jfs: {sentence}", file=sys.stderr)
    return 1


def usage() -> str:
    """The text of `jfs --help`."""
    lines = [f"  {name:<10}{command.help}" for name, command in COMMANDS.items() if command.help]
    return _USAGE.format(commands="\n".join(lines))


def mount_helper() -> int:
    """Entry of `mount.juicefs`, which mount(8) calls for fstab."""
    from jfs.cli.mount import mount_helper as helper

    return run(helper, sys.argv[1:], traceback=False)
