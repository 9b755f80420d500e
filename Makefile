# make run     the service as config.toml says; needs Python 3.11 and make, the rest goes into .venv
# make test    all tests, with a real nginx and a real uWSGI (installs nginx, gcc and headers where missing)
# make check   style, types and layers
# make bench   trispool against uWSGI and other queues on this machine (installs Redis and PostgreSQL where missing)
# make faults  kills, errors, torn files, floods: hours of them; the tables of docs/reliability.md
# make fuzz    bytes from anywhere into all that reads them, ten minutes for each reader; what is found becomes a test
# make clean   what these have made
#
# make PYTHON=/usr/bin/python3.12 …   another Python        make run CONFIG=my.toml   another configuration
# make test ARGS="-k listener -x"     arguments of pytest    make bench ARGS=--help    arguments of the benchmarks
# make faults ARGS="kills --scale 0.1"       make fuzz ARGS="packets http --seconds 60"

PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= config.toml
ARGS   ?=

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt

.PHONY: run test check bench faults fuzz coverage format clean

run: $(VENV)/.run
	@exec $(BIN)/trispool run $(CONFIG)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_layers.py

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

faults: $(VENV)/.test
	$(BIN)/python -m tests.faults $(ARGS)

fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz $(ARGS)

coverage: $(VENV)/.test
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report --show-missing --skip-covered

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamps make a second call quick. What `make test` installs is enough for `make run`, but not the other way round.
$(VENV)/.run: $(SOURCES)
	@scripts/venv $(PYTHON) $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(SOURCES)
	@scripts/venv $(PYTHON) $(VENV)
	@scripts/test-tools $(BIN)/python
	$(INSTALL) --editable ".[test,dev]"
	@touch $(VENV)/.run $@

$(VENV)/.bench: $(VENV)/.test
	@scripts/bench-tools
	$(INSTALL) --editable ".[bench]"
	@touch $@

# To build atheris takes Clang; where it has no wheel, the other drivers run all the same.
$(VENV)/.fuzz: $(VENV)/.test
	$(INSTALL) --only-binary atheris --editable ".[fuzz]" || true
	@touch $@

clean:
	rm -rf $(VENV) build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
