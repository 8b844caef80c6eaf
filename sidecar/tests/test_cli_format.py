"""`jfs format`: what it makes, what it changes, what it refuses, and that nothing is left half made. SQLite and a directory."""

import asyncio
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from jfs.cli import formatting
from jfs.cli.main import main
from jfs.errors import ObjectUnavailable, StoreUnavailable
from jfs.format.setting import Setting
from jfs.meta.connect import connect
from jfs.meta.volume import existing_setting
from jfs.object.sharded import fnv1a

UUID = "6677de5a-caa6-4d5d-8c34-656e014b150c"


class Place:
    """A directory with a database and a bucket, and the command run there."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.bucket = root / "bucket"
        self.url = f"sqlite3://{root}/meta.db"
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def run(self, *arguments: str, stdin: dict[str, Any] | str | None = None) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        if stdin is not None:
            text = stdin if isinstance(stdin, str) else json.dumps(stdin)
            self._monkeypatch.setattr("sys.stdin", io.StringIO(text))
        status = main(arguments)
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    def format(self, *options: str, name: str = "demo") -> tuple[int, str, str]:
        return self.run("format", self.url, name, "--bucket", str(self.bucket), *options)

    def document(self, **members: Any) -> dict[str, Any]:
        return {"metaurl": self.url, "name": "demo", "bucket": str(self.bucket), **members}

    def setting(self) -> Setting | None:
        async def read() -> Setting | None:
            store = await connect(self.url)
            try:
                return await existing_setting(store)
            finally:
                await store.close()

        return asyncio.run(read())

    def members(self) -> dict[str, Any]:
        setting = self.setting()
        assert setting is not None
        return dict(setting.members)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.bucket)) for path in self.bucket.rglob("*") if path.is_file())

    def refused(self, outcome: tuple[int, str, str], text: str) -> None:
        """Exit status 1 and one sentence with *text* in it."""
        status, out, err = outcome
        assert (status, out) == (1, "")
        assert err.count("\n") == 1, err
        assert text in err

    def untouched(self) -> None:
        """Neither a volume nor an object."""
        assert self.setting() is None
        assert self.files() == []


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("META_PASSWORD", "META_PASSWORD_FILE", "ACCESS_KEY", "SECRET_KEY", "SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Place(tmp_path, capsys, monkeypatch)


def test_a_volume_is_made(place: Place) -> None:
    status, out, err = place.format()
    assert (status, out) == (0, "")
    members = place.members()
    assert (members["Name"], members["Storage"], members["Bucket"]) == ("demo", "file", f"{place.bucket}/")
    assert (members["BlockSize"], members["Compression"], members["TrashDays"]) == (4096, "none", 1)
    assert members["DirStats"] is True
    assert place.files() == ["demo/juicefs_uuid"]
    assert (place.bucket / "demo" / "juicefs_uuid").read_text() == members["UUID"]
    assert "volume demo is formatted" in err


def test_options_become_members(place: Place) -> None:
    options = (
        "--block-size 100 --compress lz4 --hash-prefix --capacity 2 --inodes 1000 --trash-days=0 -storage-class IA"
    )
    assert place.format(*options.split())[0] == 0
    members = place.members()
    assert (members["BlockSize"], members["Compression"], members["HashPrefix"]) == (64, "lz4", True)
    assert (members["Capacity"], members["Inodes"], members["TrashDays"]) == (2 << 30, 1000, 0)
    assert (members["StorageClass"], members["Tiers"]["0"]["StorageClass"]) == ("IA", "IA")


def test_default_bucket_is_the_real_clients(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(place.root / "home"))
    assert place.run("format", place.url, "demo")[0] == 0
    assert place.members()["Bucket"] == f"{place.root}/home/.juicefs/local/"
    assert (place.root / "home/.juicefs/local/demo/juicefs_uuid").is_file()


def test_secrets_are_taken_from_the_environment_sealed_and_never_shown(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCESS_KEY", "the-access-key")
    monkeypatch.setenv("SECRET_KEY", "hunter2-secret")
    status, out, err = place.format()
    assert status == 0
    assert "hunter2" not in out + err
    assert '"SecretKey": "removed"' in err
    setting = place.setting()
    assert setting is not None
    assert (setting.access_key, setting.secret_key) == ("the-access-key", "hunter2-secret")
    assert setting.members["KeyEncrypted"] is True
    assert "hunter2" not in (place.root / "meta.db").read_bytes().decode("latin-1")


def test_formatting_again_changes_what_is_given_and_keeps_the_rest(place: Place) -> None:
    place.format("--trash-days", "3", "--secret-key", "one", "--access-key", "key")
    before = place.members()
    assert place.format("--capacity", "5", "--secret-key", "two")[0] == 0
    setting = place.setting()
    assert setting is not None
    assert setting.secret_key == "two"
    after = dict(setting.members)
    assert after.pop("Capacity") == 5 << 30
    assert after.pop("SecretKey") != before.pop("SecretKey")
    assert after == before


@pytest.mark.parametrize("option", ["--block-size=1M", "--compress=zstd", "--hash-prefix"])
def test_what_must_stay_is_refused_unless_forced(place: Place, option: str) -> None:
    place.format()
    before = place.members()
    place.refused(place.format(option), "differs in")
    assert place.members() == before
    assert place.format(option, "--force")[0] == 0
    assert place.members() != before
    assert place.members()["UUID"] == before["UUID"]


def test_another_name_is_another_volume(place: Place) -> None:
    place.format()
    before = place.members()
    place.refused(place.format(name="other"), "holds volume demo already, which differs in Name")
    assert place.members() == before
    assert place.files() == ["demo/juicefs_uuid"]


def test_no_update_leaves_everything(place: Place) -> None:
    place.format()
    before = place.members()
    assert place.format("--no-update", "--capacity", "9")[0] == 0
    assert place.members() == before


def test_bucket_of_another_volume_is_refused(place: Place) -> None:
    place.format()
    second = Place(place.root, place._capsys, place._monkeypatch)
    second.url = f"sqlite3://{place.root}/second.db"
    place.refused(second.format("--force"), "belongs to another volume")
    assert second.setting() is None
    assert place.files() == ["demo/juicefs_uuid"]


def test_foreign_objects_are_refused(place: Place) -> None:
    (place.bucket / "demo" / "chunks").mkdir(parents=True)
    (place.bucket / "demo" / "chunks" / "old").write_bytes(b"x")
    place.refused(place.format(), "is not empty (chunks/old)")
    assert place.files() == ["demo/chunks/old"]
    assert place.setting() is None


def test_empty_objects_and_old_probes_are_none(place: Place) -> None:
    (place.bucket / "demo" / "testing").mkdir(parents=True)
    (place.bucket / "demo" / "testing" / "old").write_bytes(b"x")
    (place.bucket / "demo" / "empty").write_bytes(b"")
    assert place.format()[0] == 0


def test_metadata_failure_takes_the_mark_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*arguments: Any, **options: Any) -> Any:
        raise StoreUnavailable("the database did not answer")

    monkeypatch.setattr(formatting, "format_volume", broken)
    place.refused(place.format(), "the database did not answer")
    place.untouched()


def test_storage_failure_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(storage: Any) -> None:
        raise ObjectUnavailable("the storage is broken")

    monkeypatch.setattr(formatting, "probe", broken)
    place.refused(place.format(), "the storage is broken")
    place.untouched()


def test_loser_of_a_race_corrects_the_mark(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another client formats the same database between our look and our transaction."""
    real = formatting.format_volume  # pyright: ignore[reportPrivateImportUsage]

    async def overtaken(store: Any, setting: Setting, **options: Any) -> Any:
        await real(store, setting.replaced(UUID=UUID), **options)
        return await real(store, setting, **options)

    monkeypatch.setattr(formatting, "format_volume", overtaken)
    place.refused(place.format(), "another client has just formatted")
    assert (place.bucket / "demo" / "juicefs_uuid").read_text() == UUID == place.members()["UUID"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("mongodb://host/db", "demo"), "unknown metadata engine 'mongodb'"),
        (("meta.db", "demo"), "no scheme"),
        (("redis://127.0.0.1:1/0", "demo"), "cannot be reached"),
        (("URL", "Demo"), "volume name 'Demo' is not valid"),
        (("URL", "ab"), "volume name 'ab' is not valid"),
        (("URL", "demo", "--block-size", "32K"), "out of range"),
        (("URL", "demo", "--block-size", "32M"), "out of range"),
        (("URL", "demo", "--block-size", "many"), "block-size"),
        (("URL", "demo", "--compress", "gzip"), "none of none, lz4, zstd"),
        (("URL", "demo", "--storage", "oss", "--bucket", "b"), "oss is not supported"),
        (("URL", "demo", "--storage", "tape", "--bucket", "b"), "no object storage named 'tape'"),
        (("URL", "demo", "--storage", "s3"), "needs --bucket"),
        (("URL", "demo", "--storage", "s3", "--bucket", "http://127.0.0.1:9"), "names no bucket"),
        (("URL", "demo", "--inodes", "-1"), "whole number"),
        (("URL", "demo", "--shards", "3"), "%d"),
        (("URL", "demo", "--encrypt-rsa-key", "key.pem"), "key.pem cannot be read"),
        (("URL", "demo", "--encrypt-algo", "sm4gcm"), "none of aes256gcm-rsa, chacha20-rsa"),
        (("URL", "demo", "--colour", "red"), "no option 'colour'"),
        (("URL", "demo", "--capacity"), "capacity needs a value"),
        (("URL",), "needs two arguments"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(place: Place, arguments: tuple[str, ...], text: str) -> None:
    outcome = place.run("format", *(place.url if word == "URL" else word for word in arguments))
    place.refused(outcome, text)
    assert not (place.root / "meta.db").exists()


def test_directory_that_cannot_be_written(place: Place) -> None:
    (place.root / "file").write_text("")
    place.bucket = place.root / "file"
    place.refused(place.format(), "is not a directory")
    place.bucket = place.root / "file" / "below"
    place.refused(place.format(), "Not a directory")
    assert place.setting() is None


def test_database_that_is_none(place: Place) -> None:
    (place.root / "meta.db").write_bytes(b"this is no database, but it is long enough to look at" * 100)
    status, _, err = place.format()
    assert status == 1
    assert err.count("\n") == 1
    assert not place.bucket.exists()


def test_newer_metadata_are_left_alone(place: Place) -> None:
    place.format()
    with sqlite3.connect(place.root / "meta.db") as database:
        database.execute("update jfs_setting set value = replace(value, '\"MetaVersion\": 1', '\"MetaVersion\": 2')")
    database.close()
    place.refused(place.format("--capacity", "1"), "use a newer client")


def test_shards_spread_objects_by_their_hash(place: Place) -> None:
    assert fnv1a(b"vol/chunks/0/0/1_0_5") == 2099895006  # the format document's own number
    place.bucket = place.root / "part-%d"
    assert place.format("--shards", "3")[0] == 0
    owner = fnv1a(b"demo/juicefs_uuid") % 3
    assert (place.root / f"part-{owner}" / "demo" / "juicefs_uuid").is_file()


# Documents


def test_document_formats_once(place: Place) -> None:
    document = place.document(**{"format-options": "trash-days=0,block-size=1M,hash-prefix", "uuid": UUID})
    status, out, err = place.run("format", "--stdin", stdin=document)
    assert (status, err) == (0, "")
    assert json.loads(out) == {"name": "demo", "uuid": UUID, "formatted": True}
    members = place.members()
    assert (members["TrashDays"], members["BlockSize"], members["HashPrefix"]) == (0, 1024, True)
    status, out, err = place.run("format", "--stdin", stdin=place.document(uuid="11111111-1111-4111-8111-111111111111"))
    assert (status, json.loads(out)) == (0, {"name": "demo", "uuid": UUID, "formatted": False})
    assert place.members() == members


def test_interrupted_format_is_completed_with_its_uuid(place: Place) -> None:
    (place.bucket / "demo").mkdir(parents=True)
    (place.bucket / "demo" / "juicefs_uuid").write_text(UUID)
    place.refused(place.run("format", "--stdin", stdin=place.document()), "belongs to another volume")
    assert place.setting() is None
    status, out, _ = place.run("format", "--stdin", stdin=place.document(uuid=UUID))
    assert (status, json.loads(out)["formatted"]) == (0, True)


def test_document_for_a_database_of_another_volume(place: Place) -> None:
    place.format()
    outcome = place.run("format", "--stdin", stdin=place.document(name="other"))
    place.refused(outcome, "holds volume demo already, not other")
    assert not outcome[2].startswith("jfs:")


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("not json", "no JSON document"),
        ("[]", "must be an object"),
        ({"name": "demo"}, "no metaurl"),
        ({"metaurl": "memory://x"}, "no name"),
        ({"metaurl": "memory://x", "name": 5}, "name in the document must be a text"),
        ({"metaurl": "memory://x", "name": "demo", "envs": "{"}, "envs"),
        ({"metaurl": "memory://x", "name": "demo", "encrypt_rsa_key": "PEM"}, "no private key in PEM form"),
        (
            {"metaurl": "memory://x", "name": "demo", "format-options": "encrypt-rsa-key=/etc/key"},
            "give the key itself as encrypt_rsa_key",
        ),
        ({"metaurl": "memory://x", "name": "demo", "format-options": "nix=1"}, "no option 'nix'"),
        ({"metaurl": "memory://x", "name": "demo", "uuid": "hunter"}, "is not a UUID"),
    ],
)
def test_bad_documents(place: Place, document: Any, text: str) -> None:
    place.refused(place.run("format", "--stdin", stdin=document), text)
