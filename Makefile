# What people do. `make demo` and `make test` set up everything that they need in .venv, and install or
# build again only what has changed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PARTS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One thread each: workers that share the cores would wait for each other in every parallel loop.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# Without a GPU, tests look at the machine code for one: nvcc takes minutes for all that wheels are built for.
ARCHITECTURES := $(if $(shell command -v nvidia-smi),,9.0+PTX)

NATIVE := CMakeLists.txt setup.py pyproject.toml $(wildcard cmake/* csrc/*.* csrc/*/*.*)
C_FILES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu tests/*/*.cpp)

.PHONY: demo test test-all lint format sanitize bench gpu gpu-static wheel clean help

help:
	@echo "make demo      robust linear initialisation on real digits (sets itself up)"
	@echo "make test      format, lint, types and tests (sets itself up)"
	@echo "make test-all  the same, with the slow tests"
	@echo "make sanitize  only the tests of the native code under AddressSanitizer and UBSan"
	@echo "make bench     measure the ops; results go to benchmarks/results"
	@echo "make gpu       tests and measurements of a GPU, with the Python that is there; PARTS=\"tests ops\""
	@echo "make gpu-static  the machine code of the GPU kernels, without a GPU"
	@echo "make format    put the code into its format"
	@echo "make wheel     build a wheel in dist"
	@echo "make clean     remove what was built, but not .venv"

demo: $(VENV)/demo.stamp
	$(BIN)/roli-fast demo

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) --slow

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

sanitize: $(VENV)/dev.stamp
	$(PYTEST) --slow tests/native/test_sanitize.py

bench: $(VENV)/dev.stamp
	$(BIN)/python -m pytest benchmarks/test_ops.py --benchmark-columns=median,iqr,rounds --benchmark-name=short
	$(BIN)/python benchmarks/plot.py benchmarks/results/ops-*.json
	$(BIN)/python benchmarks/readme.py benchmarks/results/*.json

# On any machine with an NVIDIA GPU, offline, with the Python and packages that are there: no .venv. It builds
# for that GPU and Python in place, so that what .venv needs is built anew afterwards.
gpu:
	@rm -f $(VENV)/demo.stamp $(VENV)/dev.stamp
	$(PYTHON) tools/gpu.py $(PARTS)

gpu-static: $(VENV)/dev.stamp
	$(BIN)/python tools/gpu_static.py

wheel: $(VENV)/dev.stamp
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info roli_fast/*.so roli_fast/lib $(VENV)/demo.stamp $(VENV)/dev.stamp

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "roli_fast needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version). Try make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Built against the torch of this environment, not against one of pip's own: no isolation.
$(VENV)/build.stamp: $(VENV)/pyvenv.cfg pyproject.toml
	@command -v $${CXX:-c++} > /dev/null || \
		{ echo "roli_fast needs a C++20 compiler; none found as $${CXX:-c++}"; exit 1; }
	@echo "Installing torch and what builds the kernels into $(VENV): several GB with the default torch."
	$(BIN)/python tools/requirements.py | xargs -d '\n' $(PIP) install --quiet
	@touch $@

# What the extra brings is there before the build: nvcc is part of it.
$(VENV)/demo.stamp $(VENV)/dev.stamp: $(VENV)/%.stamp: $(VENV)/build.stamp $(NATIVE)
	$(BIN)/python tools/requirements.py $* | xargs -d '\n' $(PIP) install --quiet
	TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST-$(ARCHITECTURES)}" \
		$(PIP) install --quiet --no-build-isolation --editable '.[$*]'
	@touch $@
