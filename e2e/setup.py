"""Prepare the machine beyond its Debian packages (`machine.sh`): `python -m e2e.setup` builds the programs that are missing.

Done in a moment when everything is there.
"""

from e2e import tools


def main() -> None:
    for name in tools.PROGRAMS:
        tools.path(name)


if __name__ == "__main__":
    main()
