# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SLOW_THREADS ?= 1

.PHONY: help venv demo test test-slow test-real lint types bench clean

help: ## Say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,onnx,annotate]'
	@touch $@

venv: $(VENV)/.installed ## Create .venv and install everything into it

demo: venv ## Re-pose the built-in rendered people, measure, and write a report (about five minutes on two cores)
	$(BIN)/reposer demo --out demo

test: venv ## Run the fast test suite, in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not real"

test-slow: venv ## Run the long tests: kills, faults, two processes
	OMP_NUM_THREADS=$(SLOW_THREADS) $(BIN)/python -m pytest -m "slow and not real"

test-real: venv ## Run the tests on real data beside the repository (skipped where it is absent)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m real

lint: venv ## Check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: venv ## Check types
	$(BIN)/mypy

bench: venv ## Run every benchmark; each ends with one line of JSON
	@for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b; done

clean: ## Remove the environment and what the demo wrote
	rm -rf $(VENV) demo
