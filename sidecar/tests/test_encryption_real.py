"""Encrypted volumes shared with the real client: each reads and changes what the other wrote, with every algorithm, compression and
form of the key; a wrong or missing passphrase is a sentence."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from mount_parts import JFS, Volume, check_by_real, mounted, really_mounted, run, tree
from rsa_keys import PASSPHRASE, pem

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

VARIABLE = "JFS_RSA_PASSPHRASE"


def fill(top: Path, seed: int) -> None:
    chance = random.Random(seed)
    (top / "d").mkdir(exist_ok=True)
    (top / f"big{seed}").write_bytes(chance.randbytes(9_500_000))
    (top / f"lines{seed}").write_bytes(b"the same line again and again\n" * 100_000)
    for number in range(10):
        (top / f"d/f{seed}-{number}").write_bytes(chance.randbytes(chance.choice((0, 1, 4095, 70_000))))
    with open(top / "overwritten", "ab") as file:
        for _ in range(20):
            file.write(chance.randbytes(chance.randrange(1, 40_000)))
            file.flush()
            os.fsync(file.fileno())


@pytest.mark.parametrize(
    ("algorithm", "compression", "passphrase", "real_formats"),
    [
        ("aes256gcm-rsa", "none", "", False),
        ("aes256gcm-rsa", "lz4", PASSPHRASE, True),
        ("chacha20-rsa", "zstd", PASSPHRASE, False),
        ("chacha20-rsa", "none", "", True),
    ],
)
def test_both_clients_read_what_the_other_wrote(
    algorithm: str,
    compression: str,
    passphrase: str,
    real_formats: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = tmp_path / "key.pem"
    key.write_text(pem(passphrase=passphrase))
    if passphrase:
        monkeypatch.setenv(VARIABLE, passphrase)
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format(
        *("--encrypt-rsa-key", str(key), "--encrypt-algo", algorithm, "--compress", compression), by_real=real_formats
    )
    with mounted(volume, tmp_path / "ours", "--cache-dir", str(tmp_path / "kept")) as where:
        fill(where, 1)
        written = tree(where)
    with really_mounted(volume, tmp_path / "real") as where:
        assert tree(where) == written
        fill(where, 2)
        written = tree(where)
    with mounted(volume, tmp_path / "ours", "--cache-dir", str(tmp_path / "kept")) as where:
        assert tree(where) == written
        fill(where, 3)
        (where / "big1").unlink()
    check_by_real(volume)
    run(*JFS, "fsck", volume.url, "--content")
    stored = (volume.bucket / volume.name / "juicefs_uuid").read_bytes()
    assert len(stored) == 36 + 287


@pytest.mark.parametrize("pkcs8", [False, True])
def test_a_protected_key_needs_its_passphrase(pkcs8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, where = tmp_path / "key.pem", tmp_path / "mnt"
    key.write_text(pem(pkcs8=pkcs8, passphrase=PASSPHRASE))
    where.mkdir()
    monkeypatch.setenv(VARIABLE, PASSPHRASE)
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--encrypt-rsa-key", str(key))
    commands: tuple[tuple[str, ...], ...] = (
        ("mount", "--metrics", "", volume.url, str(where)),
        ("fsck", volume.url),
        ("gc", volume.url),
        ("format", volume.url, volume.name),
    )
    for given, sentence in ((None, VARIABLE), ("wrong", "does not open it")):
        monkeypatch.delenv(VARIABLE, raising=False)
        if given:
            monkeypatch.setenv(VARIABLE, given)
        for command in commands:
            ended = run(*JFS, *command, check=False)
            assert ended.returncode == 1, command
            assert ended.stderr.splitlines()[-1].startswith("jfs: "), ended.stderr
            assert sentence in ended.stderr.splitlines()[-1]
            assert "Traceback" not in ended.stderr
            assert given is None or given not in ended.stderr
    setting = run(*JFS, "status", volume.url).stdout
    assert '"EncryptKey": "removed"' in setting
    uuid = setting.partition('"UUID": "')[2][:36]
    run(*JFS, "destroy", "--yes", volume.url, uuid)  # contents are not needed for that
    assert not list((volume.bucket / volume.name).rglob("*"))


def test_the_passphrase_is_in_no_environment_or_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount takes it out of its environment, so that no child gets it."""
    key = tmp_path / "key.pem"
    key.write_text(pem(passphrase=PASSPHRASE))
    monkeypatch.setenv(VARIABLE, PASSPHRASE)
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--encrypt-rsa-key", str(key))
    with mounted(volume, tmp_path / "ours", "--cache-dir", str(tmp_path / "kept")) as where:
        (where / "f").write_bytes(b"content")
        assert PASSPHRASE not in (where / ".config").read_text()
    asked = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import jfs.cli.environment as e, os; e.take_rsa_passphrase(); assert {VARIABLE!r} not in os.environ",
        ],
        check=False,
    )
    assert asked.returncode == 0
