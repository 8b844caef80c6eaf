"""Chaos: for some minutes pods do checksummed I/O on a real cluster while everything under them is killed and paused at random.

`python -m e2e.chaos --minutes 30` (`make chaos MINUTES=30`) on a cluster of its own; a short one is a scenario. The way through the
modules: `plan` says what happens when, a function of a seed; `world` makes back ends, volumes and pods; `workload` is the application
in the pods, `records` what it says; `parts` finds the processes of each part on the node, `injector` carries out a plan; `visits` lets
other pods and volumes come and go meanwhile; `leftovers` and `exposure` say what has stayed and where secrets can be read; `run` is the
order of all that; `report` tells it.
"""
