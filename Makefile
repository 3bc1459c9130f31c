# make experiment   the parity experiment on its embedded data set
# make test         the default test suite
# Both create .venv, install pinned packages and build the extension when needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

FUZZ_SECONDS ?= 300

.PHONY: experiment test test-all fuzz compatibility performance sanitize lint wheel clean

experiment: $(VENV)/built
	$(BIN)/python -m experiments.parity $(ARGS)

test: $(VENV)/built
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/built
	$(BIN)/python -m pytest $(ARGS)

# Configurations drawn at random against torch, new ones each time.
fuzz: $(VENV)/built
	$(BIN)/python tests/fuzz.py --seconds $(FUZZ_SECONDS) $(ARGS)

# The tables of docs/compatibility.md, from test results.
compatibility: $(VENV)/built
	$(BIN)/python -m pytest --tables docs/compatibility.md $(ARGS) tests/test_compatibility_*.py

# The tables and pictures of docs/performance.md: some hours, in which nothing else should run.
SPEED = $(BIN)/python -m experiments.speed --write docs/performance.md $(ARGS)
SUITES = core cifar-resnet20 cifar-vgg wideresnet28-10 resnet50 mobilenetv2 convnext-tiny unet \
	batch1 ragged activations pooling
performance: $(VENV)/built
	set -e; for suite in $(SUITES); do $(SPEED) --no-page-faults --suite $$suite; done
	$(SPEED)
	$(SPEED) --no-page-faults --threads 1
	TORCH_CONVBP_CPU_CAPABILITY=AVX2 $(SPEED) --no-page-faults --isa-of-torch avx2
	$(SPEED) --no-page-faults --sweep
	$(SPEED) --no-page-faults --suite training --compile

# The CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; ARGS as
# in "PROBLEMS=500 SEED=1".
TORCH_INCLUDE = $(shell $(BIN)/python -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "include"))')
sanitize: $(VENV)/installed
	$(MAKE) -C tests/sanitize TORCH_INCLUDE=$(TORCH_INCLUDE) KIND=address $(ARGS)
	$(MAKE) -C tests/sanitize TORCH_INCLUDE=$(TORCH_INCLUDE) KIND=thread $(ARGS)

lint: $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/built
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info torch_convbp/*.so $(VENV)

# Each step leaves its mark only when it has succeeded, so that an interrupted one is simply
# done again: a virtual environment that was not finished is made anew.
$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "torch_convbp needs Python >= 3.10, but PYTHON=$(PYTHON) is " + sys.version)'
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/installed: requirements.txt $(VENV)/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/built: $(SOURCES) $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@
