"""The setting record: its stored form, what is kept, what is refused, its secrets (format §2)."""

import base64
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from jfs.errors import ConfigError, CorruptRecord, VolumeError
from jfs.format.changes import changed_fixed
from jfs.format.secrets import seal, unseal
from jfs.format.setting import Setting, check_block_size, check_name, new_setting
from jfs.format.usable import check_identity, check_usable
from jfs.format.versions import is_older
from store_engines import golden

UUID = "2d4dbcce-1357-42d9-91c0-a26ae5ebcd1a"


def redis_record(name: str) -> bytes:
    for line in (golden() / name / "redis.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record.get("text") == "setting":
            return base64.b64decode(record["value"])
    raise AssertionError(f"no setting in {name}")


def sqlite_record(name: str) -> bytes:
    database = sqlite3.connect(f"file:{golden() / name / 'meta.db'}?mode=ro&immutable=1", uri=True)
    try:
        (value,) = database.execute("SELECT value FROM jfs_setting").fetchone()
    finally:
        database.close()
    return value.encode() if isinstance(value, str) else bytes(value)


def record(name: str) -> bytes:
    return redis_record(name) if name.startswith("redis") else sqlite_record(name)


VOLUMES = [
    "redis-plain",
    "redis-trash-lz4",
    "redis-hash",
    "redis-live",
    "redis-clone",
    "redis-upgraded",
    "sqlite-plain",
]
VOLUMES += ["sqlite-zstd", "sqlite-live", "redis-chacha-lz4", "redis-tier", "redis-changelog", "sqlite-aes"]


@pytest.mark.parametrize("name", VOLUMES)
def test_a_real_record_is_written_back_byte_for_byte(name: str) -> None:
    raw = record(name)
    assert Setting.parse(raw).encode() == raw


def test_a_new_record_equals_the_real_clients() -> None:
    raw = record("sqlite-plain")
    real = Setting.parse(raw)
    ours = new_setting(real.name, real.uuid, bucket="/var/jfs/", block_size=64 << 10)
    assert ours.encode() == raw


def test_unknown_members_and_their_order_survive_a_change() -> None:
    raw = b'{"Future": [1], "Name": "abc", "UUID": "u", "Bucket": "b", "TrashDays": 1, "Later": {"a": null}}'
    changed = Setting.parse(raw).replaced(Capacity=5, TrashDays=0, StorageClass="")
    assert list(changed.members) == ["Future", "Name", "UUID", "Bucket", "Capacity", "TrashDays", "Later"]
    assert changed.members["TrashDays"] == 0
    assert list(changed.replaced(Capacity=0).members) == ["Future", "Name", "UUID", "Bucket", "TrashDays", "Later"]


def test_html_characters_are_escaped_as_go_does() -> None:
    encoded = Setting({"Name": "abc", "UUID": "u", "Bucket": "http://h/?a=<b>&c=é\u2028"}).encode()
    assert rb"http://h/?a=\u003cb\u003e\u0026c=" in encoded
    assert "é\\u2028".encode() in encoded
    assert encoded.startswith(b'{\n"Name": "abc",\n')


def test_old_records_read_with_the_defaults_of_their_time() -> None:
    old = Setting.parse(record("sqlite-old"))
    assert (old.trash_days, old.dir_stats, old.compression, old.shards, old.block_size) == (0, False, "none", 0, 65536)
    check_usable(old)
    assert list(old.members)[-1] == "Inodes"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"Name": "a"}', b'{"UUID": "u"}', b"\xff"])
def test_what_is_no_setting_is_refused(raw: bytes) -> None:
    with pytest.raises(CorruptRecord, match="setting record"):
        Setting.parse(raw)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"MetaVersion": 2}, "metadata format 2"),
        ({"MinClientVersion": "9.0.0-A"}, "demands a client of version 9.0.0-A or newer"),
        ({"MaxClientVersion": "1.0.0"}, "demands a client of version 1.0.0 or older"),
        ({"EncryptKey": "pem", "EncryptAlgo": "sm4gcm"}, "is encrypted with sm4gcm"),
        ({"KerbConf": "x"}, "uses Kerberos"),
    ],
)
def test_volumes_that_must_not_be_touched(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VolumeError, match=sentence) as caught:
        check_usable(new_setting("demo", UUID).replaced(**changes))
    assert "demo" in str(caught.value)


@pytest.mark.parametrize(
    ("left", "right", "older"),
    [
        ("1.1.0-A", "1.1.0-beta1", True),
        ("1.1.0-beta1", "1.1.0", True),
        ("1.1.0", "1.1.0-beta1", False),
        ("1.4.2+py", "1.4.2", False),
        ("1.4.2", "1.4.10", True),
        ("2", "1.9.9", False),
        ("nonsense", "9.9.9", False),
    ],
)
def test_versions(left: str, right: str, older: bool) -> None:
    assert is_older(left, right) is older


@pytest.mark.parametrize("name", ["", "ab", "Abc", "a_b", "-ab", "ab-", "a" * 64, "ab\n", "äbc"])
def test_names_out_of_range(name: str) -> None:
    with pytest.raises(ConfigError, match="3 to 63"):
        check_name(name)


def test_names_in_range() -> None:
    for name in ("abc", "a-1", "a" * 63):
        check_name(name)


@pytest.mark.parametrize(
    ("size", "stored"), [(65536, 65536), (100_000, 65536), (4 << 20, 4 << 20), (16 << 20, 16 << 20)]
)
def test_block_sizes(size: int, stored: int) -> None:
    assert check_block_size(size) == stored


@pytest.mark.parametrize("size", [0, -1, 65535, (16 << 20) + 1])
def test_block_sizes_out_of_range(size: int) -> None:
    with pytest.raises(ConfigError, match="between 64 KiB and 16 MiB"):
        check_block_size(size)


@pytest.mark.parametrize("wrong", [{"compression": "gzip"}, {"capacity": -1}, {"inodes": -1}, {"trash_days": -1}])
def test_values_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        new_setting("demo", UUID, **wrong)


def test_secrets_of_real_volumes_decrypt() -> None:
    key = (golden() / "sqlite-aes" / "key.pem").read_text()
    assert Setting.parse(record("sqlite-aes")).encrypt_key == key
    chacha = Setting.parse(record("redis-chacha-lz4"))
    about = (golden() / "redis-chacha-lz4" / "about.json").read_text()
    assert chacha.access_key == "golden-access"
    assert chacha.secret_key
    assert chacha.secret_key in about


def test_secrets_are_sealed_and_never_printed() -> None:
    plain = new_setting("demo", UUID, access_key="ak", secret_key="very-secret", session_token="token-secret")
    sealed = plain.with_sealed_secrets(lambda count: bytes(range(count)))
    assert sealed.members["KeyEncrypted"] is True
    assert (sealed.secret_key, sealed.session_token, sealed.access_key) == ("very-secret", "token-secret", "ak")
    assert sealed.with_sealed_secrets(lambda count: b"") is sealed
    assert b"very-secret" not in sealed.encode()
    for setting in (plain, sealed):
        assert "secret" not in repr(setting).replace("SecretKey", "")
        assert setting.redacted()["SecretKey"] == "removed"
    assert "KeyEncrypted" not in new_setting("demo", UUID).with_sealed_secrets(lambda count: bytes(count)).members


@pytest.mark.parametrize("stored", ["!", "YQ==", base64.b64encode(bytes(40)).decode()])
def test_a_damaged_secret_is_one_sentence_without_it(stored: str) -> None:
    with pytest.raises(VolumeError, match="cannot be decrypted") as caught:
        unseal(UUID, stored)
    assert stored not in str(caught.value)
    assert unseal(UUID, seal(UUID, "s", bytes(12))) == "s"


def test_sm4_secrets_are_refused() -> None:
    setting = new_setting("demo", UUID, secret_key="x").replaced(KeyEncrypted=True, EncryptAlgo="sm4gcm")
    with pytest.raises(VolumeError, match="SM4"):
        _ = setting.secret_key


def test_members_that_must_stay() -> None:
    old = new_setting("demo", UUID)
    assert changed_fixed(old, old.replaced(Bucket="x", TrashDays=3, Shards=1)) == []
    new = old.replaced(Name="other", BlockSize=64, Compression="lz4", HashPrefix=True)
    assert changed_fixed(old, new) == ["Name", "BlockSize", "Compression", "HashPrefix"]


def test_identity() -> None:
    setting = new_setting("demo", UUID)
    check_identity(setting, UUID)
    with pytest.raises(VolumeError, match="instead of volume other"):
        check_identity(setting, "other")


def test_golden_folder_is_found() -> None:
    assert isinstance(golden(), Path)
