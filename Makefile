# Everything runs from .venv, which `make setup` fills from requirements.lock.
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.installed
WORKERS ?= auto

.PHONY: help setup demo test check bench tables report deepsparse clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv from requirements.lock, with regrow editable in it (PYTHON=python3.12 picks the interpreter)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "regrow needs Python 3.11 or newer, and '$(PYTHON)' is not that: name one, as in: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(PY) -m pip check
	@touch $@

demo: setup ## train the digits table on this machine, then print it and draw its figures (out/demo)
	$(PY) scripts/submit.py demo/digits --cluster local --wait
	$(PY) scripts/make_tables.py demo/digits --format md --out out/demo
	$(PY) scripts/make_figures.py demo --out out/demo
	@echo "The table and its figures are in out/demo, the runs behind them in runs."

test: setup ## run the fast tests (MARKS="slow or ddp" picks others; WORKERS=1: one after the other)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile $(if $(MARKS),-m "$(MARKS)")

check: setup ## lint, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy runner methods models data results scripts

bench: setup ## time the masked step and its parts against the dense step
	$(PY) scripts/bench.py

tables: setup ## regenerate every table from the runs at hand, and the committed ones from their records (out/tables, out/shown)
	$(PY) scripts/make_tables.py --format md --out out/tables
	$(PY) -m results.status --out out/shown

report: setup ## one HTML page of all tables and figures (out/report/index.html)
	$(PY) scripts/make_tables.py --format html --out out/report

deepsparse: .deepsparse/.installed ## optional: DeepSparse 1.8, at its end of life, in an environment of its own (Python 3.11)

.deepsparse/.installed: requirements-deepsparse.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "DeepSparse 1.8 needs Python 3.11, and '$(PYTHON)' is not that: name one, as in: make deepsparse PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .deepsparse
	.deepsparse/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-deepsparse.lock
	@touch $@

clean: ## remove generated output and caches; .venv, runs and datasets stay
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.deepsparse -prune -o -path ./runs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
