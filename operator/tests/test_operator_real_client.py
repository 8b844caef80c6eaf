"""The operator's idea of the `jfs` command against the client itself, on SQLite and a local directory."""

import os
import sys
from pathlib import Path

import pytest
from jfs_operator.command import FileSystem, JfsCommand, JfsError

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

UUID = "0d9cbb6c-7d0e-4ae0-9f2e-6c5b0f2f3c11"


@pytest.fixture
def document(tmp_path: Path) -> dict[str, object]:
    return {
        "metaurl": f"sqlite3://{tmp_path}/meta.db",
        "name": "contract",
        "storage": "file",
        "bucket": f"{tmp_path}/objects/",
        "envs": {"META_PASSWORD": "not-needed"},
    }


@pytest.fixture
def jfs() -> JfsCommand:
    return JfsCommand(str(Path(sys.executable).parent / "jfs"))


async def test_the_life_of_a_volume(jfs: JfsCommand, document: dict[str, object], tmp_path: Path) -> None:
    empty = await jfs.inspect(document, storage=False)
    assert (empty.metadata.ok, empty.file_system) == (True, None)
    formatted = await jfs.format({**document, "format-options": "trash-days=0,compress=lz4", "uuid": UUID})
    assert formatted == FileSystem("contract", UUID)
    assert await jfs.format({**document, "uuid": UUID}) == formatted  # repeated
    other = "7c1f3f55-5f9d-4b0c-8f0c-0d9cbb6c7d0e"
    assert await jfs.format({**document, "uuid": other}) == formatted  # a second volume on the same file system
    found = await jfs.inspect(document, storage=True)
    assert (found.metadata.ok, found.storage.ok, found.file_system) == (True, True, formatted)
    only_address = {key: document[key] for key in ("metaurl", "name")}
    assert (await jfs.inspect(only_address, storage=True)).file_system == formatted
    await jfs.remove(document, "/never/made")
    with pytest.raises(JfsError):
        await jfs.destroy(document, other)
    await jfs.destroy(document, UUID)
    await jfs.destroy(document, UUID)  # repeated
    assert (await jfs.inspect(document, storage=False)).file_system is None
    assert not [name for _, _, files in os.walk(tmp_path / "objects") for name in files]


async def test_bad_news_are_one_sentence_without_secrets(jfs: JfsCommand, document: dict[str, object]) -> None:
    with pytest.raises(JfsError) as caught:
        await jfs.format({**document, "metaurl": "redis://user:hunter2@127.0.0.1:1/1", "uuid": UUID})
    assert "hunter2" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    found = await jfs.inspect({**document, "metaurl": "redis://user:hunter2@127.0.0.1:1/1"}, storage=False)
    assert found.metadata.ok is False
    assert "hunter2" not in found.metadata.message
    assert found.metadata.message
    await jfs.format({**document, "uuid": UUID})
    with pytest.raises(JfsError):
        await jfs.format({**document, "name": "another", "uuid": UUID})
