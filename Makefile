# make help says what each target does. Each one makes .venv from nothing when it has to, and does nothing otherwise.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

PYTHON ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS := -q --no-input -c constraints.txt
# Where processes start many at once, more than one OpenMP thread each makes small operations up to 60 times slower.
export OMP_NUM_THREADS ?= 1

# The stamps are written last, so an interrupted installation is taken up again.
RUN_STAMP := $(VENV)/.rumpun
DEV_STAMP := $(VENV)/.rumpun-dev

.PHONY: help demo test lint bench soak clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    install, then everything small from nothing on this machine: a table at the end"
	@echo "make test    install with the test tools, then all tests (ARGS='-k words' chooses)"
	@echo "make lint    ruff check, ruff format --check, mypy --strict"
	@echo "make bench   the benchmarks in benchmarks/, in their quick form (ARGS= for the full one)"
	@echo "make soak    one training killed a hundred times, and compared with one that was not (ARGS=--quick for ten)"
	@echo "make clean   remove $(VENV), caches and build output (never runs/)"
	@echo
	@echo "PYTHON=python3.12   the Python to make $(VENV) with (3.11 or newer)"

demo: $(RUN_STAMP)
	@$(BIN)/rumpun demo $(ARGS)

# Fast tests first; then those that start several processes, in groups (tests/conftest.py): four at a time, since those of
# the cluster mostly wait. Both always run.
# pytest exits with 5 where it finds no test to run. Without byte code every process would compile what it imports.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(DEV_STAMP)
	@fast=0; slow=0; \
	echo "== fast tests"; $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(ARGS) || fast=$$?; \
	echo "== slow tests"; $(BIN)/python -m pytest -m slow -n 4 --durations=60 --dist loadgroup --no-loadscope-reorder $(ARGS) || slow=$$?; \
	if [ $$fast = 5 ] && [ $$slow != 5 ]; then fast=0; elif [ $$slow = 5 ]; then slow=0; fi; \
	if [ $$fast != 0 ] || [ $$slow != 0 ]; then echo "tests failed (fast: exit $$fast, slow: exit $$slow)"; exit 1; fi

lint: $(DEV_STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

BENCHMARKS := $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))
bench: ARGS = --quick
bench: $(DEV_STAMP)
	@if [ -z "$(BENCHMARKS)" ]; then echo "no benchmarks yet: benchmarks/ holds no *.py"; fi; \
	failed=""; for script in $(BENCHMARKS); do \
	echo "== $$script $(ARGS)"; $(BIN)/python $$script $(ARGS) || failed="$$failed $$script"; done; \
	if [ -n "$$failed" ]; then echo "benchmarks failed:$$failed"; exit 1; fi

soak: $(DEV_STAMP)
	@$(BIN)/python benchmarks/soak.py $(ARGS)

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find data_prep train eval launch tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV_STAMP): EXTRA := [dev]
$(RUN_STAMP) $(DEV_STAMP): pyproject.toml constraints.txt
	@if [ $@ = $(RUN_STAMP) ] && [ -e $(DEV_STAMP) ] && [ $(DEV_STAMP) -nt pyproject.toml ] && \
	  [ $(DEV_STAMP) -nt constraints.txt ] && [ -x $(BIN)/rumpun ]; then touch $@; exit 0; fi; \
	bash .ci/venv "$(VENV)" "$(PYTHON)" && \
	echo "Installing into $(VENV) (a few minutes the first time) …" && \
	{ $(BIN)/python -m pip install $(PIP_ARGS) -e ".$(EXTRA)" || { \
	echo "error: pip could not install rumpun. Fix: read the lines above; with no network, set PIP_INDEX_URL or PIP_FIND_LINKS to your mirror" >&2; \
	exit 1; }; } && touch $@
