# Every target sets up what it needs: a virtual environment in .venv, made once and again
# when pyproject.toml or constraints.txt changes. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# The release of torch that `make test-torch` tries, in an environment of its own.
TORCH ?= 2.11.0
TORCH_VENV := .venv-torch-$(TORCH)
TORCH_READY := $(TORCH_VENV)/.installed

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo check format test test-all test-torch docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Moonsweep needs Python 3.11 or newer; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
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

test: $(READY)  ## all tests but the slow ones, in two processes: some minutes
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadgroup --no-loadscope-reorder

test-all: test  ## all tests; training, endurance, fuzz, benchmarks and chaos too
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup --no-loadscope-reorder -rs

$(TORCH_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip install --quiet --upgrade pip
	grep -Ev '^(torch|triton|setuptools)==' constraints.txt > $(TORCH_VENV)/constraints.txt
	$(TORCH_VENV)/bin/python -m pip install --quiet --constraint $(TORCH_VENV)/constraints.txt \
		'torch==$(TORCH)' --editable '.[test]'
	@touch $@

test-torch: $(TORCH_READY)  ## quick tests of model/ and parallel/ with another torch: TORCH=2.11.0
	$(TORCH_VENV)/bin/python -m pytest tests/model tests/parallel -m "not slow"

docs: $(READY)  ## the pages of docs/ as a website in site/
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .venv-torch-* demo-output site build *.egg-info
