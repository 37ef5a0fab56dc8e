# A virtual environment in .venv, made once from pinned versions, and everything run from it.
# Stamps in .venv say what is installed, so a second run installs nothing.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt
LAB_EXTRAS := sae
TEST_EXTRAS := test,tl,nnsight,peft,sae
# Two runner processes, one torch thread each: a file stays in one process, so its fixtures are made once.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile
LAB_ARGS ?=
PYTEST_ARGS ?=

.PHONY: help lab report report-all test test-all test-js widgets lint format bench peers clean

help:
	@echo 'make lab         open JupyterLab on notebooks/00_start_here.ipynb'
	@echo 'make report      run that notebook into reports/00_start_here.html'
	@echo 'make report-all  the same for every notebook'
	@echo 'make test        the test suite        make test-all  with the slow matrix'
	@echo 'make widgets     build widgets/*/widget.js   make test-js   their tests; both need npm'
	@echo 'make lint        ruff and pyright      make format    ruff, writing'
	@echo 'make bench       benchmarks, rewrites tests/benchmarks/RESULTS.md'
	@echo 'make peers       .venv-peers with the libraries we compare with, rewrites data/golden/steering'
	@echo 'make clean       remove .venv, .venv-peers, reports and caches'

lab: .venv/lab.stamp
	$(BIN)/workbench lab $(LAB_ARGS)

report: .venv/lab.stamp
	$(BIN)/workbench report notebooks/00_start_here.ipynb

report-all: .venv/lab.stamp
	@set -e; for notebook in notebooks/*.ipynb; do $(BIN)/workbench report "$$notebook"; done

test: .venv/test.stamp
	$(PYTEST) $(PYTEST_ARGS)

test-all: .venv/test.stamp
	$(PYTEST) -m 'slow or not slow' $(PYTEST_ARGS)

# Installing and running need no npm: the built modules are committed. Not `npm ci`: it wants the packages of
# every platform in the lock, which a mirror may lack.
node_modules/.package-lock.json: package-lock.json
	npm install --no-save --no-audit --no-fund
	@touch $@

widgets: node_modules/.package-lock.json
	node widgets/js/build.js

test-js: node_modules/.package-lock.json
	npx vitest run --dir widgets

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/test.stamp
	$(BIN)/python -m tests.benchmarks

# Libraries that cannot live beside ours; the tests read the golden files, so only a change of those needs this.
peers: .venv-peers/peers.stamp
	OMP_NUM_THREADS=1 .venv-peers/bin/python -W ignore tests/peers/golden.py

clean:
	rm -rf .venv .venv-peers reports build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# torch first: with it in place no other package's range can choose another build. setuptools with it, so
# that building the package itself fetches nothing unpinned.
.venv/torch.stamp: constraints.txt
	@test -n '$(PYTHON)' || { echo 'make: no Python 3.11 or newer found; install one, or say make PYTHON=/path/to/python3' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch setuptools
	@touch $@

.venv/lab.stamp: .venv/torch.stamp $(SOURCES)
	$(PIP) --no-build-isolation -e '.[$(LAB_EXTRAS)]'
	@touch $@

.venv/test.stamp: .venv/torch.stamp $(SOURCES)
	$(PIP) --no-build-isolation -e '.[$(TEST_EXTRAS)]'
	@touch .venv/lab.stamp $@

.venv/dev.stamp: .venv/test.stamp
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

.venv-peers/peers.stamp: tests/peers/requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@
