"""`jfs format` and the data path beside the real client: it checks, mounts and reads what we made, and we what it made; on SQLite
with a directory and on Redis with a real S3 server."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jfs.chunk.blocks import BlockFormat, BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.reader import Reader
from jfs.chunk.writer import Writer
from jfs.meta.connect import connect
from jfs.meta.volume import SUPERUSER, Meta, MetaOptions
from jfs.object.connect import open_volume
from mount_parts import redis_server
from seaweed_server import ACCESS_KEY, SECRET_KEY, SeaweedServer

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
BIN = Path(sys.executable).parent


def run(program: str, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `jfs` or `juicefs` to its end."""
    clean = {name: value for name, value in os.environ.items() if name not in ("ACCESS_KEY", "SECRET_KEY")}
    return subprocess.run(
        [str(BIN / program), *arguments],
        input=stdin,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def done(ended: subprocess.CompletedProcess[str]) -> str:
    """Standard output of a command that must have succeeded."""
    assert ended.returncode == 0, f"{ended.args}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@contextlib.contextmanager
def mounted_by_the_real_client(url: str, mountpoint: Path, cache: Path) -> Iterator[Path]:
    mountpoint.mkdir(exist_ok=True)
    options = [
        "--no-usage-report",
        f"--cache-dir={cache}",
        "--cache-size=0",
        "--metrics=127.0.0.1:0",
        "--backup-meta=0",
    ]
    done(run("juicefs", "mount", "-d", *options, f"--log={cache}.log", url, str(mountpoint)))
    try:
        yield mountpoint
    finally:
        done(run("juicefs", "umount", str(mountpoint)))


class Engine:
    """A metadata address and where objects go, for both clients."""

    def __init__(self, url: str, storage: list[str], keys: dict[str, str]) -> None:
        self.url = url
        self.storage = storage
        self.keys = keys

    def document(self, **members: Any) -> str:
        return json.dumps({"metaurl": self.url, **members})


@pytest.fixture(params=["sqlite-file", "redis-s3"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite-file":
        yield Engine(f"sqlite3://{tmp_path}/meta.db", ["--storage", "file", "--bucket", f"{tmp_path}/bucket"], {})
        return
    server: SeaweedServer = request.getfixturevalue("seaweed")
    keys = {"ACCESS_KEY": ACCESS_KEY, "SECRET_KEY": SECRET_KEY}
    with redis_server(tmp_path) as url:
        yield Engine(f"{url}/3", ["--storage", "s3", "--bucket", server.bucket_url], keys)


async def write_by_us(url: str, name: bytes, data: bytes, source: bytes = b"") -> bytes:
    """Write a file into the root through our data path; the content of file *source*, read the same way."""
    store = await connect(url)

    async def delete(slice_id: int, size: int) -> None:
        await blocks.delete_slice(slice_id, size)

    meta = await Meta.load(store, MetaOptions(no_bgjob=True), delete_objects=delete)
    setting = meta.setting
    blocks = BlockStore(open_volume(setting), BlockFormat(setting.block_size, setting.compression, setting.hash_prefix))
    await meta.start_session()
    budget = Budget(64 << 20)
    writer, reader = Writer(blocks, meta, budget), Reader(blocks, meta, budget)
    ino, _, _ = await meta.create(SUPERUSER, 1, name, 0o644, 0)
    handle = writer.open(ino)
    for at in range(0, len(data), 100_000):
        await handle.write(at, data[at : at + 100_000])
    await handle.close()
    await meta.release(ino)
    content = b""
    if source:
        ino, attr = await meta.lookup(SUPERUSER, 1, source)
        content = bytes(await reader.open(ino).read(0, attr.length, attr.length))
    await writer.close()
    await reader.close()
    await blocks.close()
    await meta.close()
    return content


@pytest.mark.parametrize("options", ["--block-size=256K", "--compress=lz4 --hash-prefix", "--compress=zstd"])
def test_both_clients_use_a_volume_we_formatted(engine: Engine, options: str, tmp_path: Path) -> None:
    name = f"vol-{os.urandom(4).hex()}"
    done(run("jfs", "format", engine.url, name, *engine.storage, *options.split(), **engine.keys))
    done(run("juicefs", "fsck", engine.url))
    ours, theirs = os.urandom(3_000_001), os.urandom(5_000_003)
    with mounted_by_the_real_client(engine.url, tmp_path / "mnt", tmp_path / "cache") as mountpoint:
        (mountpoint / "theirs").write_bytes(theirs)
    assert asyncio.run(write_by_us(engine.url, b"ours", ours, b"theirs")) == theirs
    with mounted_by_the_real_client(engine.url, tmp_path / "mnt", tmp_path / "cache2") as mountpoint:
        assert (mountpoint / "ours").read_bytes() == ours
        assert (mountpoint / "theirs").read_bytes() == theirs
    done(run("juicefs", "fsck", engine.url))
    checked = run("juicefs", "gc", engine.url, JFS_GC_SKIPPEDTIME="0")
    assert checked.returncode == 0
    assert "0 leaked" in checked.stdout + checked.stderr
    theirs_say, ours_say = (json.loads(done(run(program, "status", engine.url))) for program in ("juicefs", "jfs"))
    assert ours_say == theirs_say
    answer = json.loads(done(run("jfs", "rmr", "--stdin", stdin=engine.document(path="ours"))))
    assert answer == {"removed": 1}
    uuid = ours_say["Setting"]["UUID"]
    answer = json.loads(done(run("jfs", "destroy", "--stdin", stdin=engine.document(uuid=uuid, force=True))))
    assert answer == {"destroyed": True}
    assert run("juicefs", "status", engine.url).returncode == 1
    # Nothing is left under the name: the real client may format it anew.
    done(run("juicefs", "format", engine.url, name, *engine.storage, **engine.keys))


def test_we_use_a_volume_the_real_client_formatted(engine: Engine) -> None:
    """Its sealed secrets open the storage."""
    name = f"vol-{os.urandom(4).hex()}"
    done(run("juicefs", "format", engine.url, name, *engine.storage, "--trash-days=0", **engine.keys))
    theirs_say, ours_say = (json.loads(done(run(program, "status", engine.url))) for program in ("juicefs", "jfs"))
    assert ours_say == theirs_say
    answer = json.loads(done(run("jfs", "status", "--stdin", stdin=engine.document())))
    assert (answer["metadata"], answer["storage"]) == ({"ok": True, "message": ""}, {"ok": True, "message": ""})
    assert SECRET_KEY not in json.dumps(answer)
    asyncio.run(write_by_us(engine.url, b"ours", os.urandom(100_000)))
    done(run("juicefs", "fsck", engine.url))
    done(run("jfs", "format", engine.url, name, *engine.storage, "--capacity=7", **engine.keys))
    changed = json.loads(done(run("juicefs", "status", engine.url)))["Setting"]
    assert changed == {**theirs_say["Setting"], "Capacity": 7 << 30} | {
        name: changed[name] for name in ("SecretKey",) if name in changed
    }
    done(run("juicefs", "fsck", engine.url))
    done(run("jfs", "destroy", engine.url, changed["UUID"], "--yes", "--force"))


def test_missing_bucket_is_made_and_a_forbidden_one_is_said(seaweed: SeaweedServer, tmp_path: Path) -> None:
    url, bucket = f"sqlite3://{tmp_path}/meta.db", f"{seaweed.endpoint}/made-by-format"
    document = {"metaurl": url, "name": "demo", "storage": "s3", "bucket": bucket}
    for access, secret in ((ACCESS_KEY, "wrong-secret"), ("reader", "reader-secret"), ("nobody", "no-secret")):
        text = json.dumps({**document, "access-key": access, "secret-key": secret})
        ended = run("jfs", "format", "--stdin", stdin=text)
        assert ended.returncode == 1
        assert ended.stderr.count("\n") == 1
        assert "refused" in ended.stderr
        assert secret not in ended.stderr
        assert not (tmp_path / "meta.db").exists()
    text = json.dumps({**document, "access-key": ACCESS_KEY, "secret-key": SECRET_KEY})
    answer = json.loads(done(run("jfs", "format", "--stdin", stdin=text)))
    assert answer["formatted"] is True
    answer = json.loads(
        done(run("jfs", "destroy", "--stdin", stdin=json.dumps({"metaurl": url, "uuid": answer["uuid"]})))
    )
    assert answer == {"destroyed": True}


def test_passwords_of_the_database(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        address = url.removeprefix("redis://")
        done(
            subprocess.run(
                ["redis-cli", "-u", url, "config", "set", "requirepass", "hunter2"],
                capture_output=True,
                text=True,
                check=False,
            )
        )
        bucket = f"--bucket={tmp_path}/bucket"
        for wrong in (url, f"redis://:hunter3@{address}"):
            ended = run("jfs", "format", wrong, "demo", bucket)
            assert ended.returncode == 1
            assert ended.stderr.count("\n") == 1
            assert "hunter" not in ended.stderr
            assert not (tmp_path / "bucket").exists()
        ended = run("jfs", "format", url, "demo", bucket, META_PASSWORD="hunter2")
        done(ended)
        assert "hunter2" not in ended.stdout + ended.stderr
        done(run("jfs", "status", f"redis://:hunter2@{address}"))
        (tmp_path / "password").write_text("hunter2\n")
        done(run("jfs", "status", url, META_PASSWORD_FILE=str(tmp_path / "password")))
        answer = json.loads(done(run("jfs", "status", "--stdin", stdin=json.dumps({"metaurl": url}))))
        assert answer["metadata"]["ok"] is False
        text = json.dumps({"metaurl": url, "envs": {"META_PASSWORD": "hunter2"}, "check": ["metadata"]})
        answer = json.loads(done(run("jfs", "status", "--stdin", stdin=text)))
        assert answer["metadata"]["ok"] is True
