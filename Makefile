# make forecast   the energy example on its synthetic series: GRU against LSTM
# make test       lint, build, the whole test suite
# make bench      the CPU benchmark, quick
# make arm        cross-compiles for 64-bit Arm and runs the kernels' tests there, emulated
# make gpu        on a machine with a GPU, offline: what only a GPU can show, and the benchmark; it
#                 takes what `make wheel conformance experiments` made where nvcc is
# make chaos      kernels with random delays, for `python -m benchmarks.gpu chaos`
# Both first ones create and use .venv; PYTHON=/path/to/python uses an existing environment instead.

export GATEDRNN_WERROR := 1

.PHONY: forecast test lint build kernels emulated arm bench wheel conformance experiments chaos gpu clean

ifdef PYTHON
environment :=
else
PYTHON := .venv/bin/python
environment := .venv/installed
endif

forecast: build
	$(PYTHON) -m examples.energy compare --out build/forecast

# Threads of OpenMP that wait without spinning: tests run more of them than there are cores.
test: export OMP_WAIT_POLICY := passive
test: lint build kernels emulated
	$(PYTHON) -m pytest -q

lint: $(environment)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "import clang_format; clang_format.clang_format()" --dry-run --Werror $$(find csrc benchmarks tests/cuda_emulator -name '*.cpp' -o -name '*.cu' -o -name '*.h')

build: $(environment)
	$(PYTHON) setup.py -q build_ext --inplace

kernels: $(environment)
	$(PYTHON) setup.py -q build_kernels

emulated: $(environment)
	$(PYTHON) setup.py -q build_emulated

arm: $(environment)
	$(PYTHON) -m tests.arm
	$(PYTHON) -m pytest -q tests/test_arm.py

bench: build kernels
	$(PYTHON) -m benchmarks.run --device cpu --suite layers --quick

wheel: $(environment)
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .

conformance: build/conformance
experiments: build/experiments

GATEDRNN_CUDA_ARCHS ?= 75;80;86;89;90a;100;120
NVCC = nvcc -std=c++20 -O2 -Xcompiler -iquote,csrc/cuda $(foreach a,$(subst ;, ,$(GATEDRNN_CUDA_ARCHS)),-gencode arch=compute_$a,code=sm_$a)
build/conformance: tests/cuda_emulator/conformance.cu $(wildcard tests/cuda_emulator/conformance*.h) csrc/cuda/device.h
	mkdir -p build
	$(NVCC) $< -o $@

build/experiments: benchmarks/experiments.cu benchmarks/experiments.h csrc/cuda/device.h
	mkdir -p build
	$(NVCC) $< -o $@

# Delays may cost registers, so warnings of spills are none of its errors.
chaos: export GATEDRNN_WERROR := 0
chaos: export GATEDRNN_CHAOS := 1
chaos: export GATEDRNN_CUDA := 1
chaos: $(environment)
	$(PYTHON) setup.py -q build --build-base build/temp_chaos --build-lib build/chaos

gpu:
	$(if $(environment),python3,$(PYTHON)) -m benchmarks.gpu

.venv/installed: requirements-dev.txt
	@python3 -c "import sys; sys.exit(0 if sys.version_info >= (3, 10) else 'gatedrnn needs Python 3.10 or newer')"
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf build dist *.egg-info gatedrnn/*.so
