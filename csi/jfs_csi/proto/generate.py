"""`python -m jfs_csi.proto.generate`: writes the `*_pb2.py` and `*_pb2.pyi` modules anew from the `.proto` files.

For developers only: it needs grpcio-tools, which is not a dependency of the installed driver. `--check DIRECTORY` writes
into a directory instead, for the test that compares the committed modules with fresh ones.
"""

import argparse
import importlib
import importlib.resources
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROTOS = ("csi.proto", "pluginregistration.proto")


def generate(destination: Path) -> None:
    """Write the modules below `destination` (they land in `jfs_csi/proto/`). Raises SystemExit if the compiler fails."""
    protoc = importlib.import_module("grpc_tools.protoc")
    include = importlib.resources.files("grpc_tools") / "_proto"
    root = HERE.parent.parent
    for proto in PROTOS:
        arguments = [
            "protoc",
            f"-I{root}",
            f"-I{include}",
            f"--python_out={destination}",
            f"--pyi_out={destination}",
            str(HERE / proto),
        ]
        code = protoc.main(arguments)
        if code != 0:
            raise SystemExit(f"protoc ended with {code} on {proto}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=Path, metavar="DIRECTORY", help="write below this directory instead")
    generate(parser.parse_args().check or HERE.parent.parent)
