.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv engines test test-paths test-units test-runtime quality format bench clean

PYTHON ?= python3
VENV ?= .venv
BUNDLE ?= build/mini
EXTRAS ?= onnxruntime,openvino,tensorrt-rtx,export,train,eval,dev

BIN := $(VENV)/bin
READY := $(VENV)/.ready

help:  ## Say what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(READY)  ## Make the environment (.venv) where there is none

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

engines: $(READY)  ## Build the bundle of the shipped model and restore the sample photographs with it
	$(BIN)/python export/build_engines.py --out $(BUNDLE)
	$(BIN)/python -m dod_runtime restore docs/samples build/restored --bundle $(BUNDLE)

# Two targets at a time with one thread each: the tensors of tests are too small to be shared between threads.
# The runtime is tested in a process of its own, as applications run it: without torch. It has a target of its own too:
# where one target fails, the others still run and report.
test: $(READY)  ## Run the tests
	@$(MAKE) --no-print-directory --jobs 2 --keep-going --output-sync=target test-paths test-units test-runtime

test-paths: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/end_to_end tests/benchmarks

test-units: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/dod tests/export

test-runtime: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/runtime

quality: $(READY)  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)  ## Format the sources and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Measure latency on this machine (after make engines)
	$(BIN)/python benchmarks/latency.py --bundle $(BUNDLE)

clean:  ## Delete what was built (the environment stays)
	rm -rf build
