"""Archives written by hand, and what decides that an image is built again."""

import hashlib
import json
import tarfile
from pathlib import Path

from e2e.images import archive, product


def test_archive_is_a_docker_archive_of_one_layer(tmp_path: Path) -> None:
    place = tmp_path / "image.tar"
    archive.write(place, "localhost/x:1", {"bin/run": b"program"}, {"Entrypoint": ["/bin/run"]}, {"bin/link": "run"})
    with tarfile.open(place) as tar:
        manifest = json.loads(_read(tar, "manifest.json"))[0]
        config = _read(tar, manifest["Config"])
        layer = _read(tar, manifest["Layers"][0])
    assert manifest["RepoTags"] == ["localhost/x:1"]
    assert manifest["Config"] == hashlib.sha256(config).hexdigest() + ".json"
    assert json.loads(config)["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    assert json.loads(config)["config"]["Entrypoint"] == ["/bin/run"]
    (tmp_path / "layer.tar").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert {entry.name for entry in tar} == {"bin/run", "bin/link", "tmp", "data"}
        assert tar.getmember("bin/run").mode == 0o755


def test_equal_input_gives_equal_archives(tmp_path: Path) -> None:
    for name in ("one", "two"):
        archive.write(tmp_path / name, "localhost/x:1", {"b": b"2", "a": b"1"}, {})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_static_program_brings_no_libraries(tmp_path: Path) -> None:
    script = tmp_path / "program"
    script.write_text("not an ELF file")
    assert list(archive.with_libraries(script)) == ["usr/bin/program"]


def test_dynamic_program_brings_its_libraries() -> None:
    files = archive.with_libraries(Path("/bin/sh"))
    assert any(path.rpartition("/")[2].startswith("libc.so") for path in files)
    assert all(isinstance(source, Path) and source.is_file() for source in files.values())


def test_context_is_what_dockerignore_lets_in() -> None:
    """A file that reaches an image has to be part of its key."""
    allowed = {
        line.removeprefix("!")
        for line in (product.REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert allowed == {*product.PACKAGES, *product.CONTEXT} - {".dockerignore"}


def test_product_images_differ() -> None:
    assert product.key("sidecar") != product.key("operator")


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()
