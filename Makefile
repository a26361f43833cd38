# Every target sets up what it needs: a virtual environment in .venv, made once and again
# when pyproject.toml changes. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo check format test test-all docs clean

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Moonsweep needs Python 3.11 or newer; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(READY)

demo: $(READY)  ## caption the demo clips and show them
	$(BIN)/python -m jobs.demo

check: $(READY)  ## format, lint, types, import directions; never edits
	$(BIN)/ruff format --diff .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY)  ## all tests but the slow ones: some minutes
	$(BIN)/python -m pytest -m "not slow"

test-all: $(READY)  ## all tests; training, endurance, fuzz, benchmarks and chaos too
	$(BIN)/python -m pytest

docs: $(READY)  ## the pages of docs/ as a website in site/
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) demo-output site build *.egg-info
