# Everything a newcomer needs:  make train  ·  make test  ·  make check
# Options of the main job:      make train ARGS="--data MNIST --latent 20"
# Another Python:               make train PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: train test quick lint format types check wheel clean

train: .venv/installed
	$(BIN)/python experiments/train.py $(ARGS)

# A process a core, up to four, of one thread each.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

# The same without the slowest: whole compilations by Inductor, and long trainings.
quick: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 -m "not slow"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/installed-dev
	$(BIN)/mypy

check: lint types test

# Builds the wheel and uses it in an empty environment, as a pip user would.
wheel:
	.ci/wheel

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# What PYTHON names must start and be new enough: checked before anything is made, and whenever it is named.
define check_python
version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1); \
case "$$version" in \
  3.1[1-9] | 3.[2-9][0-9] | [4-9].*) ;; \
  [0-9].[0-9] | [0-9].[0-9][0-9]) echo "error: pyro_vae needs Python 3.11 or newer, and '$(PYTHON)' is $$version; name another: make PYTHON=python3.12"; exit 1 ;; \
  *) echo "error: '$(PYTHON)' is no Python that starts here ($$(echo "$$version" | head -n 1)); install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3"; exit 1 ;; \
esac
endef

.PHONY: python
python:
	@$(check_python)

ifeq ($(origin PYTHON),command line)
.venv/installed: | python
endif

# The environment is made anew where pyproject.toml has changed; what is installed already is kept.
.venv/installed: pyproject.toml
	@$(check_python)
	@command -v gcc >/dev/null || command -v cc >/dev/null || command -v clang >/dev/null || { echo "error: no C compiler found; PyTorch compiles with one: install gcc (Debian: apt install gcc g++, Fedora: dnf install gcc-c++)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "error: $(PYTHON) could not make a virtual environment (Debian: apt install python3-venv)"; exit 1; }
	@echo "Installing pyro_vae and what it stands on into .venv (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Installing the tools of development into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
