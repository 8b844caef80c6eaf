"""`python -m e2e.tools [NAME…]`: build the programs (all by default) and print their paths."""

import sys

from e2e import tools


def main() -> None:
    names = sys.argv[1:] or list(tools.PROGRAMS)
    unknown = [name for name in names if name not in tools.PROGRAMS]
    if unknown:
        sys.exit(f"Unknown program {unknown[0]}; there are {', '.join(tools.PROGRAMS)}.")
    for name in names:
        print(tools.path(name))


main()
