"""`python -m e2e.images [NAME…]`: make the image archives (all by default) and print their paths."""

import sys

from e2e import images
from e2e.images.buildah import BuildError


def main() -> None:
    names = sys.argv[1:] or list(images.NAMES)
    unknown = [name for name in names if name not in images.NAMES]
    if unknown:
        sys.exit(f"Unknown image {unknown[0]}; there are {', '.join(images.NAMES)}.")
    try:
        for name in names:
            print(images.path(name))
    except BuildError as error:
        sys.exit(str(error))


main()
