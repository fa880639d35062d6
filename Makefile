# One environment for everything: `make demo` and `make test` make it first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := reports/demo
# Sleeping instead of spinning threads; see hydrabench/process.py.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test test-all bench docs lint zoo reports clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "hydrabench needs Python 3.10 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,lirpa]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps auto_LiRPA
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(DEMO)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes of one thread each do more on two cores than one process of two.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: lint
	$(TEST) -m "not slow"

test-all: lint
	$(TEST) --hypothesis-profile random

bench: $(STAMP)
	for study in benchmarks/*.py; do echo "== $$study"; $(BIN)/python $$study || exit 1; done

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/mkdocs build --strict

zoo: $(STAMP)
	$(BIN)/python tools/make_zoo.py

reports: $(STAMP)
	$(BIN)/python tools/make_reports.py

clean:
	rm -rf $(VENV) runs $(DEMO) site build dist *.egg-info
