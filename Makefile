# Everything a developer or a user runs; each target does its own set-up. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install machine check format lint types imports unit real crash cluster chaos test demo demo-down bench clean

# uv lives beside the project, not in the machine; Python is the machine's own: Debian's, which the images have and which is a third
# faster than one that was built without profiles, or whatever `python3` is.
UV := .uv/bin/uv
UV_VERSION := 0.13.9
export UV_PYTHON_DOWNLOADS := never
export UV_PYTHON := $(or $(shell /usr/bin/python3 -c 'import sys; sys.version_info < (3, 11) or print("/usr/bin/python3")' 2>/dev/null),python3)
PYTHON := .venv/bin/python
PYTEST := .venv/bin/pytest
# The second core is used where tests do not share servers.
UNIT_WORKERS ?= 2

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

install: .venv/.installed ## the virtual environment with everything, leaves .venv/bin/jfs

.venv/.installed: pyproject.toml uv.lock Makefile e2e/machine.sh
	@e2e/machine.sh base
	@test -x $(UV) && $(UV) --version | grep -qF 'uv $(UV_VERSION)' || { python3 -m venv .uv && .uv/bin/pip install -q --disable-pip-version-check uv==$(UV_VERSION); }
	$(UV) sync --quiet --locked --all-extras --all-groups
	@touch $@

machine: install ## Debian packages and built programs that the real tests, the demo and the cluster need
	@e2e/machine.sh full
	$(PYTHON) -m e2e.setup

format: install ## rewrite the code in the project's format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lint: install
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/deptry .

types: install
	.venv/bin/mypy
	.venv/bin/pyright

imports: install
	.venv/bin/lint-imports

unit: install ## fast tests: no servers, no root
	$(PYTEST) -q -n $(UNIT_WORKERS) -m "not real and not cluster"

check: install ## formatting, linters, types, import rules, unit tests, side by side: about a minute
	+@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint imports types unit

real: machine ## tests against the real JuiceFS, Redis, SeaweedFS and kernel mounts
	e2e/twice.sh real $(PYTEST) -q -m real

crash: machine ## ROUNDS (200) of writer, kill -9 of client, Redis or storage, remount, verify, on each pair of database and storage
	CRASH_ROUNDS=$(or $(ROUNDS),200) $(PYTEST) -q -s sidecar/tests/test_crash_loop.py

cluster: machine ## tests on a real one-node Kubernetes
	e2e/twice.sh cluster $(PYTEST) -q -m cluster

chaos: machine ## MINUTES (30) of checksummed I/O in pods while everything under them is killed and paused; a report in reports/ (CHAOS_SEED=… repeats)
	$(PYTHON) -m e2e.chaos --minutes $(or $(MINUTES),30)

test: check real cluster ## everything

demo: machine ## a volume shared by two pods on a real one-node Kubernetes (CLUSTER=current: on the current context)
	$(PYTHON) -m e2e.demo up $(if $(CLUSTER),--cluster $(CLUSTER))

demo-down: install ## take the demo down
	$(PYTHON) -m e2e.demo down $(if $(CLUSTER),--cluster $(CLUSTER))

bench: machine ## pods' timings on the cluster, then the rows beside the real JuiceFS, as tables in reports/ (ENGINE=sqlite3, STORAGE=s3, RUNS=5)
	$(PYTEST) -q -m cluster e2e/scenarios/test_scenario_timings.py
	@cat reports/e2e.md
	$(PYTHON) -m e2e.bench --requests || true
	$(PYTHON) -m e2e.bench $(if $(ENGINE),--engine $(ENGINE)) $(if $(STORAGE),--storage $(STORAGE)) $(if $(RUNS),--runs $(RUNS))

clean: ## remove what the targets made in this folder
	rm -rf .venv .uv build dist reports .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
