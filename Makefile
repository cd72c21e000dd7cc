# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SLOW_THREADS ?= 1
EVERYTHING := .[dev,onnx,annotate,tensorboard,serve]
PINNED := .[dev,onnx,annotate,tensorboard,serve,browser,docs,maps,ray,s3,peers]
PIP := -m pip install --quiet --disable-pip-version-check
# Thousands of small files that tests wait for the disk to keep: in memory where there are 4 GB to spare.
ROOM := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4000000')
SCRATCH := $(if $(ROOM),TMPDIR=/dev/shm)
# Tests and commands start hundreds of processes: they read compiled modules, whatever the machine has set.
export PYTHONDONTWRITEBYTECODE :=
FAST := -m pytest -o tmp_path_retention_policy=failed -n 2 --dist loadfile -m "not slow and not real"

.PHONY: help venv demo test test-latest test-lowest pins test-slow test-real lint types docs bench clean

help: ## Say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The build tool comes from constraints.txt too, which pip does not apply inside a build's own environment.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt hatchling editables
	$(BIN)/python $(PIP) -c constraints.txt --no-build-isolation -e '$(EVERYTHING)'
	@touch $@

venv: $(VENV)/.installed ## Create .venv and install everything into it, at the versions of constraints.txt

demo: venv ## Re-pose the built-in rendered people, measure, and write a report (about five minutes on two cores)
	$(BIN)/reposer demo --out demo

test: venv ## Run the fast test suite, in two processes
	$(SCRATCH) OMP_NUM_THREADS=1 $(BIN)/python $(FAST)

test-latest: ## The fast suite with the newest release of everything, in .venv-latest
	rm -rf .venv-latest && $(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python $(PIP) hatchling editables
	.venv-latest/bin/python $(PIP) --no-build-isolation -e '$(PINNED)'
	$(SCRATCH) OMP_NUM_THREADS=1 .venv-latest/bin/python $(FAST)

test-lowest: ## The fast suite with the lowest versions that pyproject.toml allows, in .venv-lowest (Python 3.11)
	rm -rf .venv-lowest && $(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/helpers/versions.py lowest > .venv-lowest/lowest.txt
	.venv-lowest/bin/python $(PIP) -c .venv-lowest/lowest.txt -e '$(EVERYTHING)'
	$(SCRATCH) OMP_NUM_THREADS=1 .venv-lowest/bin/python $(FAST)

pins: ## Write constraints.txt from .venv-latest, after a green test-latest
	.venv-latest/bin/python tests/helpers/versions.py installed > constraints.tmp && mv constraints.tmp constraints.txt

test-slow: venv ## Run the long tests: kills, faults, two processes, Ray, S3; Debian's chromium and SLURM, where they are
	$(BIN)/python $(PIP) -c constraints.txt --no-build-isolation -e '.[browser,ray,s3,peers]'
	OMP_NUM_THREADS=$(SLOW_THREADS) $(BIN)/python -m pytest -m "slow and not real"

test-real: venv ## Run the tests on real data beside the repository (skipped where it is absent)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m real

lint: venv ## Check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: venv ## Check types
	$(BIN)/mypy

docs: venv ## Build the documentation as a site, build/docs/index.html; a warning or a broken link is an error
	$(BIN)/python $(PIP) -c constraints.txt --no-build-isolation -e '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html -d build/doctrees docs build/docs
	@echo build/docs/index.html

bench: venv ## Run every benchmark; each ends with one line of JSON
	@for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b; done

clean: ## Remove the environments, the site and what the demo wrote
	rm -rf $(VENV) .venv-latest .venv-lowest demo build/docs build/doctrees
