# `make demo` and `make test` set up their own environment; each is safe to repeat.
# Another interpreter: PYTHON=python3.12 make test (its environment is kept apart).

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/ready
# the peers are several hundred megabytes, and no test needs them
BENCH := $(VENV)-bench

# XLA's compiler for GPUs, 1.4 gigabytes with JAX, once for its newest version and once for another
GPU_VERSIONS := newest 0.11.2
GPU_ENVS := $(addprefix .venv-gpu-compile-,$(GPU_VERSIONS))

# K=expression picks tests by name: make test-one K="shard_map and GRU"
K ?=

.PHONY: help demo test test-all test-one test-gpu-compile test-peers bench bench-quick gpu-check lint format equations clean

help:
	@echo "make demo      train the spoken-vowel network; results in runs/spoken_vowels"
	@echo "make test      run the tests"
	@echo "make test-all  run the tests that are marked slow too"
	@echo "make test-one K='mask and GRU'  run the tests whose names match"
	@echo "make test-gpu-compile  compile for a GPU without one, and count what is launched"
	@echo "make test-peers  hold networks against torch itself"
	@echo "make bench     measure the library beside its peers; results in runs/benchmarks"
	@echo "make bench-quick  the same at one shape, in two minutes"
	@echo "make gpu-check  right values and times on a GPU, in seven minutes; results in runs/gpu_check"
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

# the tests on a CPU choose flags that a GPU's programs must not have
test-gpu-compile: $(addsuffix /ready,$(GPU_ENVS))
	@set -e; for env in $(GPU_ENVS); do \
	  XLA_FLAGS= $$env/bin/python -m pytest -n 2 --dist worksteal tests/gpu_compile; \
	done

test-peers: $(BENCH)/ready
	$(BENCH)/bin/python -m pytest tests/peers

bench: $(BENCH)/ready
	$(BENCH)/bin/python -m experiments.benchmarks

bench-quick: $(BENCH)/ready
	$(BENCH)/bin/python -m experiments.benchmarks --quick

# with the JAX that is installed for the GPU, not with an environment of ours
gpu-check:
	$(PYTHON) -m experiments.gpu_check

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

# JAX's newest versions need a newer Python than the library does
$(addsuffix /ready,$(GPU_ENVS)): .venv-gpu-compile-%/ready: pyproject.toml
	@python=$$(.ci/python 3.12) && \
	  "$$python" -m venv --clear $(@D) && \
	  $(@D)/bin/python -m pip install --quiet --editable '.[gpu-compile]' \
	    $(if $(filter-out newest,$*),jax==$* jax-cuda13-plugin==$*) || \
	  { echo "make test-gpu-compile needs Python 3.12 and the packages of the extra gpu-compile, jax $*"; exit 1; }
	@touch $@

$(READY): EXTRAS := test
$(BENCH)/ready: EXTRAS := bench,experiments

# made last, so that an interrupted set-up is done again
$(READY) $(BENCH)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) must be Python 3.11 or newer; name another: PYTHON=python3.12 make ..."; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@
