"""The protocol modules that protoc wrote are those of the `.proto` files beside them."""

import importlib
import importlib.resources
from pathlib import Path

import pytest

SIDECAR = Path(__file__).resolve().parents[1]
PROTOS = ("jfs/dump/proto/backup.proto", "jfs/meta/engines/kv/proto/etcd.proto", "jfs/meta/engines/kv/proto/tikv.proto")


@pytest.mark.parametrize("proto", PROTOS)
def test_generated_modules_are_current(proto: str, tmp_path: Path) -> None:
    protoc = importlib.import_module("grpc_tools.protoc")
    include = importlib.resources.files("grpc_tools") / "_proto"
    where = [f"-I{SIDECAR}", f"-I{include}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main(["protoc", *where, str(SIDECAR / proto)]) == 0
    fresh = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    stem = Path(proto).stem
    assert [path.name for path in fresh] == [f"{stem}_pb2.py", f"{stem}_pb2.pyi"]
    for path in fresh:
        assert path.read_text() == (SIDECAR / path.relative_to(tmp_path)).read_text(), path.name


def test_no_protocol_is_left_out() -> None:
    assert sorted(str(path.relative_to(SIDECAR)) for path in SIDECAR.rglob("jfs/**/*.proto")) == sorted(PROTOS)
