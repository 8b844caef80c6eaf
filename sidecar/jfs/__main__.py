"""`python -m jfs` is the `jfs` command."""

import sys

from jfs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
