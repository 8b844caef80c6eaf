"""The benchmark: our client, the real JuiceFS and the plain disk, side by side in one run on the same database and directory.

`rows.py` says what is measured, `clients.py` mounts, `run.py` interleaves and counts, `table.py` prints. The machine is noisy:
only ratios of one run mean anything, so every row runs on all of them in turn before the next repetition.
"""
