"""The crash loop: what fsync, close and the operations on names acknowledged survives SIGKILL of the client, of the database and of
the object storage at any instant, and the volume is sound afterwards.

After each round the metadata and the list of objects are examined. A few rounds here; `make crash ROUNDS=200` runs as many as
one likes on each pair of database and storage (CRASH_ROUNDS), with the commands fsck and gc of both clients after every fifth
and the last. CRASH_SEED repeats a run's choices.
"""

import os
from pathlib import Path

import pytest
from crash_rig import rig

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "0"))
SEED = int(os.environ.get("CRASH_SEED", "1"))

pytestmark = [pytest.mark.real, pytest.mark.timeout(300 + 60 * ROUNDS)]


PAIRS = [
    ("sqlite3", "file"),
    ("redis", "file"),
    ("redis", "s3"),
    ("postgres", "file"),
    ("mysql", "file"),
    ("etcd", "file"),
]  # what the test server of TiKV holds ends with its process


@pytest.mark.parametrize(("engine", "storage"), PAIRS)
def test_rounds_of_kills(tmp_path: Path, engine: str, storage: str) -> None:
    with rig(tmp_path, engine, storage, SEED, thorough=bool(ROUNDS)) as made:
        for number in range(ROUNDS or 3):
            victims = made.victims()
            made.round(made.random.choice(["client", *victims]) if ROUNDS else victims[number % len(victims)])
            if ROUNDS:
                print(
                    f"{engine} {storage} round {number + 1} of {ROUNDS}: {made.killed} killed, "
                    f"{made.acknowledged} acknowledged, {made.leaked} objects leaked and found",
                    flush=True,
                )
        made.examine(programs=True)
        assert made.acknowledged > 50
