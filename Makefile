# Everything a newcomer types: `make demo` and `make test`. Needs python3 (3.11 or later) with venv, and GNU make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format clean

help: ## say what there is
	@echo "make demo    set up, train a small network on embedded pictures, judge it, draw its curves"
	@echo "make test    set up, run the whole test suite (CIFARLAB_DATA=folder: with the real CIFAR-10 too)"
	@echo "make check   set up, check format, lint and types"
	@echo "make format  set up, rewrite the source in the project's format, and the pages made from it"
	@echo "make clean   remove what make made: the environment and caches, not your runs"
	@echo
	@echo "PYTHON=python3.12 make ... chooses the Python that the environment is made from."

# Made again when the versions asked for change, or what is compiled. The last step writes it, so a failed install leaves none.
$(READY): pyproject.toml constraints.txt hatch_build.py $(wildcard src/cifarlab/kernels/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "cifarlab needs Python 3.11 or later as '$(PYTHON)'; found: $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "If you have it under another name: make PYTHON=python3.12 ..." >&2; exit 1; }
	@rm -f $@
	@echo "Setting up $(VENV): once, a few minutes, mostly PyTorch's download."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	@sh scripts/demo.sh

test: $(READY)
	$(BIN)/python -m pytest -n 2

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python scripts/recipe_fields.py
	$(BIN)/python scripts/results_table.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	rm -f src/cifarlab/kernels/*.so
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
