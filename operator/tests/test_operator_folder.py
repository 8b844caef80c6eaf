"""The folder `operator/` must never be a package: it would shadow the standard library's `operator`."""

import operator
from pathlib import Path


def test_the_folder_is_not_a_package() -> None:
    folder = Path(__file__).parent.parent
    assert not (folder / "__init__.py").exists()
    assert not (folder / "tests" / "__init__.py").exists()
    assert operator.__file__ is not None
    assert folder not in Path(operator.__file__).parents
