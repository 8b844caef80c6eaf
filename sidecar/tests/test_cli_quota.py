"""`jfs quota` and `jfs config`: command lines, tables, what is asked and refused. SQLite and a directory, no mount."""

import asyncio
import io
import json
from pathlib import Path

import pytest
from jfs.cli.main import main
from jfs.cli.quota import parse
from jfs.cli.tables import size_text, table
from jfs.errors import ConfigError
from jfs.meta.connect import connect
from jfs.meta.volume import SUPERUSER, Meta, MetaOptions


@pytest.fixture
def url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A formatted volume with a directory `d` and one below it."""
    url = f"sqlite3://{tmp_path}/meta.db"
    assert main(["format", url, "demo", "--bucket", str(tmp_path / "bucket"), "--secret-key", "hidden"]) == 0

    async def fill() -> None:
        async def nothing(id: int, size: int) -> None:
            raise AssertionError((id, size))

        meta = await Meta.load(await connect(url), MetaOptions(), delete_objects=nothing)
        ino, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
        await meta.mkdir(SUPERUSER, ino, b"below", 0o755)
        await meta.close()

    asyncio.run(fill())
    capsys.readouterr()
    return url


def test_sizes() -> None:
    shown = {0: "0 B", 1023: "1023 B", 4096: "4.0 KiB", 10239: "10 KiB", 159744: "156 KiB", 1 << 30: "1.0 GiB"}
    assert {count: size_text(count) for count in shown} == shown
    assert size_text(-8192) == "-8.0 KiB"


def test_table_is_framed_as_the_real_clients() -> None:
    assert table(("Path/ID", "Size"), [("uid:1000", "unchanged")], "<>").splitlines() == [
        "+----------+-----------+",
        "|  Path/ID |    Size   |",
        "+----------+-----------+",
        "| uid:1000 | unchanged |",
        "+----------+-----------+",
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("set URL --inodes 1", "needs --path, --uid or --gid"),
        ("set URL --path /d", "needs --capacity or --inodes"),
        ("set URL --path d --inodes 1", "must be absolute"),
        ("set URL --path /d --uid 1 --inodes 1", "cannot be given together"),
        ("set URL --uid 0 --inodes 1", "cannot have a quota"),
        ("set URL --uid x --inodes 1", "whole number"),
        ("set URL --uid 1 --inodes -1", "whole number"),
        ("set URL --uid 1 --inodes 1 --create", "--create is for --path"),
        ("set URL --path /d --inodes 1 --repair", "no option --repair"),
        ("get URL --path /d --inodes 1", "takes no limits"),
        ("get --path /d", "one META-URL"),
        ("list URL --colour red", "no option 'colour'"),
        ("grow URL", "knows the commands"),
    ],
)
def test_wrong_lines_are_refused(line: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(line.split())


def test_quota_commands(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    def quota(*words: str) -> tuple[int, str, str]:
        status = main(["quota", *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    assert quota("list", url) == (0, "", "")
    _, shown, _ = quota("set", url, "--path", "/d/", "--capacity", "1", "--inodes=5")
    assert shown.splitlines()[3] == "| /d   | 1.0 GiB | 4.0 KiB |   0% |      5 |     1 |   20% |"
    _, shown, _ = quota("set", "--uid", "1000", url, "--capacity", "0", "--inodes", "7")
    assert shown.splitlines()[3] == "| 1000    | unchanged |  0 B |      |      7 |     0 |    0% |"
    status, _, said = quota("set", url, "--path", "/missing/deep", "--inodes", "1")
    assert (status, "there is no directory /missing/deep" in said) == (1, True)
    assert quota("set", url, "--path", "/missing/deep", "--inodes", "1", "--create")[0] == 0
    _, shown, _ = quota("ls", url)
    assert [line.split()[1] for line in shown.splitlines()[3:-1]] == ["/d", "/missing/deep", "uid:1000"]
    assert quota("check", url)[0] == 0
    assert quota("check", url, "--path", "/d", "--strict")[1] == quota("get", url, "--path", "/d")[1]
    assert quota("del", url, "--path", "/d") == (0, "", "")
    assert quota("get", url, "--path", "/d")[:2] == (0, "")
    status, _, said = quota("check", url, "--path", "/d")
    assert (status, "has no quota" in said) == (1, True)


def test_config(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def config(*words: str, answer: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        status = main(["config", url, *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    _, shown, _ = config()
    assert json.loads(shown)["SecretKey"] == "removed"
    assert config("--capacity", "10", "--inodes", "100")[:2] == (0, "  capacity: 0 B -> 10 GiB\n    inodes: 0 -> 100\n")
    assert config("--inodes", "100") == (0, "Nothing changed.\n", "")
    status, _, said = config("--inodes", "1", answer="n\n")
    assert status == 1
    assert "below the 2 inodes in use" in said
    assert "nothing was changed" in said
    assert config("--inodes", "1", answer="y\n")[0] == 0
    assert config("--trash-days", "0")[0] == 1
    assert config("--trash-days", "0", "-y")[:2] == (0, "trash-days: 1 -> 0\n")
    assert config("--enable-acl")[1] == "enable-acl: false -> true\nmin-client-version: 1.1.0-A -> 1.2.0-A\n"
    for words, sentence in (
        (("--enable-acl=false",), "cannot be turned off"),
        (("--min-client-version", "1.1.0"), "cannot be lowered"),
        (("--max-client-version", "abc"), "is not a version"),
        (("--dir-stats=maybe",), "true or false"),
        (("--tier", "4"), "there are tiers 0 to 3"),
        (("--tier", "1"), "needs --storage-class or --tag"),
        (("--changelog-max-age", "long"), "not a duration"),
        (("--colour", "red"), "no option 'colour'"),
        (("--trash-days", "-1"), "whole number"),
        (("more",), "one META-URL"),
    ):
        status, _, said = config(*words)
        assert (status, sentence in said) == (1, True), (words, said)
    assert config("--secret-key", "other")[:2] == (0, "secret-key: removed -> removed\n")
    _, shown, _ = config()
    assert "other" not in shown
    assert json.loads(shown)["KeyEncrypted"] is True


def test_turning_usage_on_counts_what_is_there(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--dir-stats=false",), ("--user-group-quota",)):
        assert main(["config", url, *words]) == 0
    assert main(["quota", "set", url, "--path", "/d", "--inodes", "9"]) == 0
    assert main(["config", url, "--dir-stats=true"]) == 0
    assert main(["quota", "check", url]) == 0
    assert main(["quota", "check", url, "--path", "/d"]) == 0
    assert "inconsistent" not in capsys.readouterr().err
