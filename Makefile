.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv engines test test-paths test-export test-dod test-runtime test-all check check-units check-runtime quality format \
	bench clean

PYTHON ?= python3
VENV ?= .venv
BUNDLE ?= build/mini
EXTRAS ?= onnxruntime,openvino,tensorrt-rtx,export,train,eval,dev

BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One thread each: the tensors of tests are too small to be shared between threads, and several processes run at a time.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --continue-on-collection-errors
SELECT ?= -m "not slow"
PARTS = test-paths test-dod test-export test-runtime
IN_PARALLEL = @$(MAKE) --no-print-directory --jobs 3 --keep-going --output-sync=target

# Fast test modules of every folder. Paths are listed, because collecting every module would take longer than the tests.
CHECK_RUNTIME = $(addprefix tests/runtime/, \
	test_console.py bundle/test_merge.py bundle/test_safetensors.py image/test_geometry.py image/test_write.py)
CHECK_UNITS = \
	$(addprefix tests/dod/, test_config.py test_prototypes.py data/test_degradations.py model/test_modulation.py) \
	$(addprefix tests/export/, test_cache.py engines/test_targets.py graphs/test_trace_workers.py parity/test_compare.py) \
	$(addprefix tests/benchmarks/, test_common_options.py test_comparison.py test_json_file.py test_timing.py) \
	tests/examples/test_readme.py

help:  ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(READY)  ## Create the environment (.venv) if it is missing

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

engines: $(READY)  ## Build the bundle of the shipped model and restore the sample images with it
	$(BIN)/python export/build_engines.py --out $(BUNDLE)
	$(BIN)/python -m dod_runtime restore docs/samples build/restored --bundle $(BUNDLE)

# Each part is a target and a process of its own: if one fails, the others still run and report. The runtime's process
# has no torch, as in applications.
test: $(READY)  ## Run the tests and doctests, without slow ones
	$(IN_PARALLEL) $(PARTS)

test-paths: $(READY)
	$(PYTEST) $(SELECT) --doctest-modules benchmarks tests/end_to_end tests/benchmarks tests/examples

test-export: $(READY)
	$(PYTEST) $(SELECT) --doctest-modules export tests/export

test-dod: $(READY)
	$(PYTEST) $(SELECT) --doctest-modules dod tests/dod

test-runtime: $(READY)
	$(PYTEST) $(SELECT) --doctest-modules runtime/dod_runtime tests/runtime

test-all: $(READY)  ## Run all tests and doctests
	$(IN_PARALLEL) SELECT= $(PARTS)

check: $(READY)  ## Run a quick selection of tests from every folder
	$(IN_PARALLEL) check-units check-runtime

check-units: $(READY)
	$(PYTEST) --quiet $(CHECK_UNITS)

check-runtime: $(READY)
	$(PYTEST) --quiet $(CHECK_RUNTIME)

quality: $(READY)  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)  ## Format the sources and apply the linter's fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Measure latency on this machine (after make engines)
	$(BIN)/python benchmarks/latency.py --bundle $(BUNDLE)

clean:  ## Delete everything that was built, except the environment
	rm -rf build

.PHONY: docs
docs: $(READY)  ## Build the documentation in build/docs; a broken link or reference fails
	test -x $(BIN)/mkdocs || $(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS),docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
