"""The `jfs` command as a subprocess: secrets on standard input only, answers checked, failures one sentence."""

import asyncio
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jfs_operator.command import FileSystem, JfsCommand, JfsError

# Records what it was started with and answers what the test wrote beside it.
SCRIPT = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
(folder / "seen.json").write_text(json.dumps({{"argv": sys.argv[1:], "stdin": sys.stdin.read(), "environ": dict(os.environ)}}))
answer = json.loads((folder / "answer.json").read_text())
sys.stdout.write(answer["stdout"])
sys.stderr.write(answer["stderr"])
sys.exit(answer["exit"])
"""
DOCUMENT = {"metaurl": "redis://:hunter2@r/1", "name": "demo", "secret-key": "s3cr3t"}


class Program:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "jfs"
        self.path.write_text(SCRIPT.format(python=sys.executable))
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def answers(self, stdout: object, stderr: str = "", exit: int = 0) -> JfsCommand:
        text = stdout if isinstance(stdout, str) else json.dumps(stdout)
        (self._folder / "answer.json").write_text(json.dumps({"stdout": text, "stderr": stderr, "exit": exit}))
        return JfsCommand(str(self.path))

    def seen(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self._folder / "seen.json").read_text())
        return found


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


async def test_secrets_travel_on_standard_input_alone(program: Program) -> None:
    jfs = program.answers({"name": "demo", "uuid": "u-1", "formatted": True})
    assert await jfs.format({**DOCUMENT, "uuid": "u-1"}) == FileSystem("demo", "u-1")
    seen = program.seen()
    assert seen["argv"] == ["format", "--stdin"]
    assert json.loads(str(seen["stdin"])) == {**DOCUMENT, "uuid": "u-1"}
    for secret in ("hunter2", "s3cr3t"):
        assert secret not in json.dumps([seen["argv"], seen["environ"]])


async def test_status_is_read_with_or_without_a_volume(program: Program) -> None:
    setting = {"Name": "demo", "UUID": "u-1"}
    jfs = program.answers({"metadata": {"ok": True}, "storage": {"ok": False, "message": "denied"}, "setting": setting})
    found = await jfs.inspect(DOCUMENT, storage=True)
    assert (found.metadata.ok, found.storage.ok, found.storage.message) == (True, False, "denied")
    assert found.file_system == FileSystem("demo", "u-1")
    assert json.loads(str(program.seen()["stdin"]))["check"] == ["metadata", "storage"]
    found = await program.answers({"metadata": {"ok": True}, "setting": None}).inspect(DOCUMENT, storage=False)
    assert (found.file_system, found.storage.ok) == (None, None)
    assert json.loads(str(program.seen()["stdin"]))["check"] == ["metadata"]


async def test_removal_names_what_to_remove(program: Program) -> None:
    await program.answers("").destroy(DOCUMENT, "u-1")
    assert (program.seen()["argv"], json.loads(str(program.seen()["stdin"]))["uuid"]) == (["destroy", "--stdin"], "u-1")
    await program.answers("").remove(DOCUMENT, "/a/b")
    assert (program.seen()["argv"], json.loads(str(program.seen()["stdin"]))["path"]) == (["rmr", "--stdin"], "/a/b")


@pytest.mark.parametrize(
    ("stdout", "stderr", "exit", "sentence"),
    [
        ("", "warning: old server\nthe database is not reachable\n", 1, "the database is not reachable"),
        ("", "", 7, "jfs format ended with exit code 7"),
        ("hello", "", 0, "jfs format answered with something that is not a JSON object"),
        ([1], "", 0, "jfs format answered with something that is not a JSON object"),
        ({"name": "demo"}, "", 0, "jfs format answered without the volume's name and uuid"),
    ],
)
async def test_failures_are_one_sentence(
    program: Program, stdout: object, stderr: str, exit: int, sentence: str
) -> None:
    with pytest.raises(JfsError) as caught:
        await program.answers(stdout, stderr, exit).format(DOCUMENT)
    assert str(caught.value) == sentence


async def test_a_missing_program_is_told() -> None:
    with pytest.raises(JfsError, match="cannot run /no/such/jfs: No such file"):
        await JfsCommand("/no/such/jfs").format(DOCUMENT)


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that whoever adopted it has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


async def written(path: Path) -> int:
    await until(path.exists)
    return int(path.read_text())


def endless(folder: Path, deadline: float = 2) -> JfsCommand:
    """A program that waits for a child for ever; the child's process id is in the file `child`."""
    program = folder / "jfs"
    program.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {folder}/new && mv {folder}/new {folder}/child\nwait\n")
    program.chmod(0o755)
    return JfsCommand(str(program), deadline=deadline)


async def test_a_command_that_never_ends_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(JfsError, match="jfs format did not end within 2 s"):
        await endless(tmp_path).format(DOCUMENT)
    if (tmp_path / "child").exists():  # on a busy machine it may not have come so far
        child = int((tmp_path / "child").read_text())
        await until(lambda: has_ended(child))


async def test_a_cancelled_question_leaves_no_process(tmp_path: Path) -> None:
    task = asyncio.create_task(endless(tmp_path, deadline=60).remove(DOCUMENT, "/a"))
    child = await written(tmp_path / "child")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: has_ended(child))
