"""`jfs status`, `destroy`, `rmr`, `version` and the dispatcher."""

import asyncio
import io
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jfs.chunk.blocks import BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.writer import Writer
from jfs.cli.environment import take_meta_password, take_storage_keys
from jfs.cli.main import main
from jfs.errors import ConfigError
from jfs.meta.connect import connect
from jfs.meta.volume import SUPERUSER, Meta, MetaOptions
from jfs.object.connect import open_volume


class Volume:
    """A volume in a directory, and commands run on it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.url = f"sqlite3://{root}/meta.db"
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        assert self.run("format", self.url, "demo", "--bucket", f"{root}/bucket")[0] == 0
        self.uuid = (root / "bucket/demo/juicefs_uuid").read_text()

    def run(self, *arguments: str, stdin: dict[str, Any] | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            self._monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"metaurl": self.url, **stdin})))
        status = main(arguments)
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    def objects(self) -> list[str]:
        base = self.root / "bucket"
        return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())

    def fill(self, *paths: str) -> None:
        """Make files of ten bytes, with their directories."""
        asyncio.run(self._fill(paths))

    async def _fill(self, paths: tuple[str, ...]) -> None:
        store = await connect(self.url)
        meta: Meta | None = None

        async def delete(slice_id: int, size: int) -> None:
            raise AssertionError("nothing is deleted here")

        meta = await Meta.load(store, MetaOptions(no_bgjob=True), delete_objects=delete)
        await meta.start_session()
        blocks = BlockStore(open_volume(meta.setting))
        writer = Writer(blocks, meta, Budget(1 << 20))
        for path in paths:
            *folders, name = path.encode().split(b"/")
            at = 1
            for folder in folders:
                try:
                    at, _ = await meta.lookup(SUPERUSER, at, folder)
                except Exception:
                    at, _ = await meta.mkdir(SUPERUSER, at, folder, 0o755)
            ino, _, _ = await meta.create(SUPERUSER, at, name, 0o644, 0)
            handle = writer.open(ino)
            await handle.write(0, b"0123456789")
            await handle.close()
            await meta.release(ino)
        await writer.close()
        await blocks.close()
        await meta.close()


@pytest.fixture
def volume(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Volume:
    return Volume(tmp_path, capsys, monkeypatch)


def test_status_has_the_real_clients_shape(volume: Volume) -> None:
    volume.fill("a/one")
    status, out, err = volume.run("status", volume.url)
    answer = json.loads(out)
    assert (status, err) == (0, "")
    assert list(answer) == ["Setting", "Sessions", "Stat"]
    assert answer["Setting"]["UUID"] == volume.uuid
    assert (answer["Stat"]["UsedInodes"], answer["Stat"]["UsedSpace"]) == (2, 8192)


def test_status_of_no_volume(volume: Volume) -> None:
    status, out, err = volume.run("status", f"sqlite3://{volume.root}/other.db")
    assert (status, out) == (1, "")
    assert err == "jfs: the database is not formatted: create the volume with `jfs format` first\n"
    assert not (volume.root / "other.db").exists()
    assert volume.run("status", volume.url, "--session", "5")[0] == 1


def test_status_document_tells_what_works(volume: Volume) -> None:
    status, out, _ = volume.run("status", "--stdin", stdin={})
    answer = json.loads(out)
    assert status == 0
    assert (answer["metadata"]["ok"], answer["storage"]["ok"]) == (True, True)
    assert (answer["setting"]["name"], answer["setting"]["uuid"]) == ("demo", volume.uuid)
    assert (answer["sessions"], answer["used_inodes"]) == (0, 0)
    assert volume.objects() == ["demo/juicefs_uuid"]
    answer = json.loads(volume.run("status", "--stdin", stdin={"check": ["metadata"]})[1])
    assert "storage" not in answer


def test_status_document_answers_when_nothing_works(volume: Volume) -> None:
    document = {"metaurl": "redis://:hunter2@127.0.0.1:1/0", "storage": "s3", "bucket": "http://127.0.0.1:1/b"}
    status, out, err = volume.run("status", "--stdin", stdin={**document, "access-key": "a", "secret-key": "hunter3"})
    answer = json.loads(out)
    assert status == 0
    assert (answer["metadata"]["ok"], answer["storage"]["ok"]) == (False, False)
    assert "cannot be reached" in answer["metadata"]["message"]
    assert "cannot be reached" in answer["storage"]["message"]
    assert answer["setting"] is None
    assert "hunter" not in out + err


def test_status_document_before_the_format(volume: Volume) -> None:
    document = {"metaurl": f"sqlite3://{volume.root}/new.db", "name": "fresh", "bucket": f"{volume.root}/fresh"}
    answer = json.loads(volume.run("status", "--stdin", stdin=document)[1])
    assert (answer["metadata"]["ok"], answer["setting"], answer["storage"]["ok"]) == (True, None, False)
    assert "create it" in answer["storage"]["message"]
    (volume.root / "fresh").mkdir()
    answer = json.loads(volume.run("status", "--stdin", stdin=document)[1])
    assert (answer["metadata"]["ok"], answer["setting"], answer["storage"]["ok"]) == (True, None, True)
    assert not (volume.root / "new.db").exists()


def test_status_document_of_a_volume_that_must_not_be_touched(volume: Volume) -> None:
    with sqlite3.connect(volume.root / "meta.db") as database:
        database.execute("update jfs_setting set value = replace(value, '1.1.0-A', '9.0.0')")
    database.close()
    answer = json.loads(volume.run("status", "--stdin", stdin={})[1])
    assert answer["metadata"]["ok"] is False
    assert "9.0.0" in answer["metadata"]["message"]
    assert answer["setting"]["uuid"] == volume.uuid


def test_destroy_removes_everything(volume: Volume) -> None:
    volume.fill("a/one", "two")
    assert len(volume.objects()) == 3
    status, out, err = volume.run("destroy", volume.url, volume.uuid, "--yes")
    assert (status, out) == (0, "")
    assert "is destroyed" in err
    assert volume.objects() == []
    assert list((volume.root / "bucket").iterdir()) == []
    assert volume.run("status", volume.url)[0] == 1


def test_destroy_needs_the_right_uuid_and_a_yes(volume: Volume) -> None:
    other = "11111111-1111-4111-8111-111111111111"
    for arguments in ((volume.url, other, "--yes"), (volume.url, volume.uuid)):
        status, _, err = volume.run("destroy", *arguments)
        assert status == 1
        assert err.count("\n") == 1
    assert volume.objects() == ["demo/juicefs_uuid"]
    assert volume.run("status", volume.url)[0] == 0


def test_destroy_document_is_refused_while_mounted_and_can_be_repeated(volume: Volume) -> None:
    with sqlite3.connect(volume.root / "meta.db") as database:
        database.execute("insert into jfs_session2 (sid, expire, info) values (7, ?, '{}')", (int(time.time()) + 1000,))
    database.close()
    status, out, err = volume.run("destroy", "--stdin", stdin={"uuid": volume.uuid})
    assert (status, out) == (1, "")
    assert "session 7" in err
    assert volume.objects() == ["demo/juicefs_uuid"]
    status, out, _ = volume.run("destroy", "--stdin", stdin={"uuid": volume.uuid, "force": True})
    assert (status, json.loads(out)) == (0, {"destroyed": True})
    status, out, _ = volume.run("destroy", "--stdin", stdin={"uuid": volume.uuid})
    assert (status, json.loads(out)) == (0, {"destroyed": False})


def test_rmr_removes_a_tree_with_its_objects(volume: Volume) -> None:
    volume.fill("keep/me", "sub/dir/one", "sub/dir/below/two", "sub/three")
    assert len(volume.objects()) == 5
    status, out, _ = volume.run("rmr", "--stdin", stdin={"path": "/sub/dir/"})
    assert (status, json.loads(out)) == (0, {"removed": 4})
    assert len(volume.objects()) == 3
    answer = json.loads(volume.run("status", volume.url)[1])
    assert (answer["Stat"]["UsedInodes"], answer["Sessions"]) == (4, [])
    assert json.loads(volume.run("rmr", "--stdin", stdin={"path": "sub/dir"})[1]) == {"removed": 0}
    assert json.loads(volume.run("rmr", "--stdin", stdin={"path": "not/there/at/all"})[1]) == {"removed": 0}


@pytest.mark.parametrize("path", ["", "/", "a/../b", "."])
def test_rmr_refuses_other_paths(volume: Volume, path: str) -> None:
    status, _, err = volume.run("rmr", "--stdin", stdin={"path": path})
    assert status == 1
    assert "below the volume's root" in err


def test_rmr_through_a_file(volume: Volume) -> None:
    volume.fill("file")
    status, _, err = volume.run("rmr", "--stdin", stdin={"path": "file/below"})
    assert status == 1
    assert "is no directory" in err
    assert volume.run("rmr", volume.url)[0] == 1


def test_version_and_help(volume: Volume) -> None:
    for arguments in (("version",), ("--version",), ("-V",)):
        status, out, _ = volume.run(*arguments)
        assert status == 0
        assert "JuiceFS 1." in out
    status, out, _ = volume.run("--help")
    assert status == 0
    for command in ("format", "mount", "umount", "status", "info", "destroy", "version"):
        assert f"  {command} " in out
    assert "worker" not in out
    assert "jfs format sqlite3://demo.db demo" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nonsense",), "unknown command 'nonsense'"),
        (("gateway", "redis://h"), "gateway of JuiceFS is not part"),
        (("--nonsense", "status"), "unknown option --nonsense"),
        (("--log-level", "loud", "status"), "loud"),
        (("--log-level",), "needs a value"),
        (("version", "now"), "takes no arguments"),
    ],
)
def test_wrong_command_lines(volume: Volume, arguments: tuple[str, ...], text: str) -> None:
    status, out, err = volume.run(*arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert text in err


def test_global_options_are_taken(volume: Volume) -> None:
    for options in (("-q",), ("--log-level=error", "--no-agent"), ("--log-id", "x", "--no-color")):
        assert volume.run(*options, "status", volume.url)[0] == 0


def test_traceback_only_when_asked_for(volume: Volume) -> None:
    assert "Traceback" in volume.run("--debug", "status", "nowhere")[2]
    assert "Traceback" not in volume.run("status", "nowhere")[2]


def test_secrets_leave_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from-file\n")
    monkeypatch.setenv("META_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("SECRET_KEY", "secret")
    assert take_meta_password() == "from-file"
    assert take_meta_password() == ""
    assert take_storage_keys() == {"secret-key": "secret"}
    assert take_storage_keys() == {}
    monkeypatch.setenv("META_PASSWORD_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="cannot be read"):
        take_meta_password()
    monkeypatch.setenv("REDIS_PASSWORD", "old")
    assert take_meta_password() == "old"


def test_light_commands_import_nothing_heavy() -> None:
    """`jfs ready` runs every second in a pod."""
    code = (
        "import sys; from jfs.cli.main import main; main(['version']); main(['ready', '--control', '/nonexistent']);"
        "heavy = {'asyncio', 'aiohttp', 'hiredis', 'pydantic', 'botocore', 'cryptography', 'argparse'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
