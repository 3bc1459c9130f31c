# make experiment   the parity experiment on its embedded data set
# make test         the default test suite
# Both create .venv, install pinned packages and build the extension when needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

FUZZ_SECONDS ?= 300

.PHONY: experiment test test-all fuzz compatibility performance tutorial sanitize cuda-check lint \
	docs wheel wheel-check clean

experiment: $(VENV)/built
	$(BIN)/python -m experiments.parity $(ARGS)

# In two processes, which share the work as they go; their threads wait without spinning.
test: $(VENV)/built
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(ARGS)

test-all: $(VENV)/built
	$(BIN)/python -m pytest $(ARGS)

# Configurations drawn at random against torch, new ones each time.
fuzz: $(VENV)/built
	$(BIN)/python tests/support/fuzz.py --seconds $(FUZZ_SECONDS) $(ARGS)

# The tables of docs/compatibility.md, from test results.
compatibility: $(VENV)/built
	$(BIN)/python -m pytest --tables docs/compatibility.md $(ARGS) tests/compatibility

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
	$(SPEED) --no-page-faults --suite small-pictures

# docs/tutorial.md: its notebook, which is run, and what its cells print and draw.
tutorial: $(VENV)/built
	$(BIN)/python -m experiments.tutorial $(ARGS)

# The CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; ARGS as
# in "PROBLEMS=500 SEED=1".
TORCH_INCLUDE = $(shell $(BIN)/python -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "include"))')
sanitize: $(VENV)/installed
	$(MAKE) -C tests/native/sanitize TORCH_INCLUDE=$(TORCH_INCLUDE) KIND=address $(ARGS)
	$(MAKE) -C tests/native/sanitize TORCH_INCLUDE=$(TORCH_INCLUDE) KIND=thread $(ARGS)

# On a machine with a GPU: the CUDA kernels against the CPU's loop nests, by themselves and under
# compute-sanitizer, and what the default tests show on every device.
cuda-check: $(VENV)/built
	$(MAKE) -j -C tests/native/cuda TORCH_INCLUDE=$(TORCH_INCLUDE) gpu
	$(MAKE) -C tests/native/cuda TORCH_INCLUDE=$(TORCH_INCLUDE) run-gpu
	$(BIN)/python -m pytest -m "not slow" -k cuda $(ARGS)

lint: $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu*' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

# The pages of docs/, into build/site. The tools read docstrings without running them: no torch is needed.
docs: build/docs/installed
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --quiet

# dist/: the source archive, and the wheel that is built from it, tagged with the oldest glibc that
# it runs with. What it needs of torch and CUDA comes with torch.
wheel: $(VENV)/installed
	rm -rf dist build/wheel
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' > /dev/null
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel dist/*.tar.gz
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --wheel-dir dist \
		--exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcud*' build/wheel/*.whl

# The wheel in fresh environments, an older and a newer torch: its tests run in a folder where they
# find the wheel, and not the sources.
TORCH_VERSIONS ?= 2.10.0 2.14.1
WHEEL_TESTS ?= package/test_info package/test_process modules/test_modules modules/test_convert \
	autograd/test_gradients autograd/test_activations
wheel-check: $(TORCH_VERSIONS:%=wheel-check-%)

wheel-check-%:
	@test -e dist/*.whl || { echo "there is no wheel in dist: make wheel"; exit 1; }
	rm -rf build/wheel-check/$*
	$(PYTHON) -m venv build/wheel-check/$*
	sed '/^torch/d; s/\[.*\]//' requirements.txt > build/wheel-check/$*/constraints.txt
	cd build/wheel-check/$* && bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt torch==$* torchvision pytest expecttest hypothesis ../../../dist/*.whl
	cp -r tests pyproject.toml build/wheel-check/$*
	cd build/wheel-check/$* && unset PYTHONPATH && bin/python -m torch_convbp.info \
		&& bin/python -m pytest -q -m "not slow" $(WHEEL_TESTS:%=tests/%.py)

clean:
	rm -rf build dist *.egg-info torch_convbp/*.so $(VENV)

# Each step leaves its mark only when it has succeeded, so that an interrupted one is simply
# done again: a virtual environment that was not finished is made anew.
$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "torch_convbp needs Python >= 3.10, but PYTHON=$(PYTHON) is " + sys.version)'
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/installed: requirements.txt $(VENV)/created
	$(PIP) install -r requirements.txt
	touch $@

$(VENV)/built: $(SOURCES) $(VENV)/installed
	$(PIP) install --no-build-isolation --no-deps --editable .
	touch $@

build/docs/installed: docs/requirements.txt
	$(PYTHON) -m venv --clear build/docs
	build/docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@
