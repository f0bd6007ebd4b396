# make forecast   the energy example on its synthetic series: GRU against LSTM
# make test       lint, build, the whole test suite
# make bench      the CPU benchmark, quick
# Both first ones create and use .venv; PYTHON=/path/to/python uses an existing environment instead.

export GATEDRNN_WERROR := 1

.PHONY: forecast test lint build kernels bench clean

ifdef PYTHON
environment :=
else
PYTHON := .venv/bin/python
environment := .venv/installed
endif

forecast: build
	$(PYTHON) -m examples.energy

test: lint build kernels
	$(PYTHON) -m pytest -q

lint: $(environment)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "import clang_format; clang_format.clang_format()" --dry-run --Werror csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h

build: $(environment)
	$(PYTHON) setup.py -q build_ext --inplace

kernels: $(environment)
	$(PYTHON) setup.py -q build_kernels

bench: build kernels
	$(PYTHON) -m benchmarks.run --device cpu --suite layers --quick

.venv/installed: requirements-dev.txt
	@python3 -c "import sys; sys.exit(0 if sys.version_info >= (3, 10) else 'gatedrnn needs Python 3.10 or newer')"
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf build dist *.egg-info gatedrnn/*.so
