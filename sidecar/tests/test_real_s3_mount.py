"""Mounts over a real S3 server: both clients read what either wrote; wrong keys and buckets are told in a sentence."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from mount_parts import JFS, Volume, is_mounted, mounted, really_mounted, run, tree
from seaweed_server import ACCESS_KEY, SECRET_KEY, SeaweedServer

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]


def fill(top: Path) -> None:
    chance = random.Random(9)
    (top / "d").mkdir()
    for number in range(20):
        (top / f"d/{number}").write_bytes(chance.randbytes(chance.randrange(20_000)))
    (top / "big").write_bytes(chance.randbytes(9_000_000))
    with open(top / "big", "r+b") as file:
        file.seek(4_190_000)
        file.write(b"across a block" * 1000)


def test_both_clients_share_a_bucket(seaweed: SeaweedServer, tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path, "s3-mounted")
    keys = {"ACCESS_KEY": ACCESS_KEY, "SECRET_KEY": SECRET_KEY}
    run(
        *(*JFS, "format", "--storage", "s3", "--bucket", seaweed.bucket_url, "--compress", "lz4"),
        *(volume.url, volume.name),
        env={**os.environ, **keys},
    )
    with mounted(volume, tmp_path / "ours", "--cache-dir", str(tmp_path / "kept")) as where:
        fill(where)
        written = tree(where)
    with really_mounted(volume, tmp_path / "real") as where:
        assert tree(where) == written
        (where / "more").write_bytes(b"by the real client" * 1000)
        written = tree(where)
    with mounted(volume, tmp_path / "ours", "--cache-dir", str(tmp_path / "kept")) as where:
        assert tree(where) == written
        run("rm", "-r", str(where / "d"), str(where / "big"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"secret_key": "wrong-secret-word"}, "WrongCredentials"),
        ({"bucket": "no-such-bucket"}, "StorageUnreachable"),
    ],
)
def test_worker_tells_wrong_keys_and_buckets(
    seaweed: SeaweedServer, tmp_path: Path, change: dict[str, str], code: str
) -> None:
    url, where = f"sqlite3://{tmp_path}/meta.db", tmp_path / "mnt"
    where.mkdir()
    run(
        *(*JFS, "format", "--storage", "s3", "--bucket", seaweed.bucket_url, url, f"s3-{code.lower()}"),
        env={**os.environ, "ACCESS_KEY": ACCESS_KEY, "SECRET_KEY": SECRET_KEY},
    )
    if "bucket" in change:
        change = {"bucket": f"{seaweed.endpoint}/no-such-bucket"}
    keys = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY, **change}
    document = {"meta_url": url, "mountpoint": str(where), "options": [], "storage": keys}
    ended = subprocess.run(
        [*JFS, "worker"], input=json.dumps(document) + "\n", capture_output=True, text=True, timeout=120, check=False
    )
    event = json.loads(ended.stdout.splitlines()[-1])
    assert ended.returncode == 1, event
    assert event["event"] == "error"
    assert event["code"] == code, event
    assert "wrong-secret-word" not in ended.stdout + ended.stderr
    assert not is_mounted(where)
