# Two commands are all a newcomer needs: `make serve` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash

HOST ?= 127.0.0.1
PORT ?= 8700
UV_VERSION := 0.13.8
PY := .venv/bin/python
STAMP := .venv/.ready
ABOUT_STEPS := $(patsubst %,tests/api/test_%.py,steps head_branches fork results revert_redo_clear export_import feeds turns \
	traces stored_apart)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## set up .venv and nothing else

serve: $(STAMP) ## serve on HOST (127.0.0.1) and PORT (8700), with an embedded database unless MONGODB_URI is set
	@exec .venv/bin/holdfast serve --host "$(HOST)" --port "$(PORT)"

test: $(STAMP) ## run the tests, with a short version of each fault run
	@$(PY) -m pytest -n auto --maxprocesses 4 --ignore tests/faults
	@HOLDFAST_SEAL_BYTES=1024 $(PY) -m pytest -n auto --maxprocesses 4 $(ABOUT_STEPS)  # once more, almost all sealed
	@$(PY) -m pytest tests/faults  # each takes the machine for itself

test-long: $(STAMP) ## run the long fault runs
	@HOLDFAST_TEST_ROUNDS=20 $(PY) -m pytest --timeout 3600 tests/faults

check: $(STAMP) ## format, lints, types, import contract
	@.venv/bin/ruff format --check --quiet . || { echo "run: .venv/bin/ruff format ."; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports
	@$(PY) -m scripts.lints
	@$(PY) -m scripts.state_machine --check

bench: $(STAMP) ## measure, interleaved, and print ratios
	@$(PY) -m scripts.bench $(ARGS)

demo: $(STAMP) ## show the main job in one terminal; FILE=… imports your own trace
	@$(PY) -m scripts.demo $(FILE)

demo-fleet: $(STAMP) ## show runners, replicas and the database being killed and paused, and nothing lost
	@$(PY) -m scripts.demo_fleet

drill: $(STAMP) ## back up under load, lose the database, restore, and prove that nothing differs; ARGS="--agents 100"
	@$(PY) -m scripts.drill $(ARGS)

lock: $(STAMP) ## lock the versions anew
	@scripts/lock

$(STAMP): pyproject.toml requirements.lock requirements-embedder.lock scripts/make-venv
	@UV_VERSION=$(UV_VERSION) scripts/make-venv .venv
	@touch $@

.PHONY: help venv serve test test-long check bench demo demo-fleet drill lock
