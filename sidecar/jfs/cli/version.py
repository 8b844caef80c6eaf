"""`jfs version`: the product's version, and the client version it claims towards a volume's bounds (format §2.6)."""

from jfs.errors import ConfigError
from jfs.format.constants import CLIENT_VERSION


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: jfs version\n\nShow the version of this client and the JuiceFS version it is compatible with.")
        return 0
    if arguments:
        raise ConfigError("jfs version takes no arguments")
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("juicefs-sidecar")
    except PackageNotFoundError:  # run from a source tree
        own = "unpackaged"
    print(f"jfs version {own} (JuiceFS {CLIENT_VERSION})")
    return 0
