# `make demo` and `make test` set up their own environment; each is safe to repeat.
# Another interpreter: PYTHON=python3.12 make test (its environment is kept apart).

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/ready
# the peers are several hundred megabytes, and no test needs them
BENCH := $(VENV)-bench

# K=expression picks tests by name: make test-one K="shard_map and GRU"
K ?=

.PHONY: help demo test test-all test-one bench bench-quick lint format equations clean

help:
	@echo "make demo      train the spoken-vowel network; results in runs/spoken_vowels"
	@echo "make test      run the tests"
	@echo "make test-all  run the tests that are marked slow too"
	@echo "make test-one K='mask and GRU'  run the tests whose names match"
	@echo "make bench     measure the library beside its peers; results in runs/benchmarks"
	@echo "make bench-quick  the same at one shape, in two minutes"
	@echo "make lint      ruff (lint and format) and mypy"
	@echo "make format    let ruff rewrite the files"
	@echo "make equations  rewrite the textbook's page of equations"
	@echo "make clean     remove the environments and the results"

demo: $(READY)
	$(BIN)/python -m experiments spoken_vowels

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-one: $(READY)
	$(BIN)/python -m pytest -k "$(K)"

bench: $(BENCH)/ready
	$(BENCH)/bin/python -m experiments.benchmarks

bench-quick: $(BENCH)/ready
	$(BENCH)/bin/python -m experiments.benchmarks --quick

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

equations: $(READY)
	$(BIN)/python tests/textbook/equations.py

clean:
	rm -rf .venv .venv-* runs

$(READY): EXTRAS := test
$(BENCH)/ready: EXTRAS := bench,experiments

# made last, so that an interrupted set-up is done again
$(READY) $(BENCH)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) must be Python 3.11 or newer; name another: PYTHON=python3.12 make ..."; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@
