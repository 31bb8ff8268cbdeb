# make demo, make test, make test-all, make fuzz, make kills, make lint: each sets up .venv first, once, and again after a change of
# pyproject.toml, of constraints.txt, or of which files the packages hold (a strict editable install links them singly).

PYTHON ?= python3
BIN := .venv/bin
# uv where it is installed, pip otherwise. Both report errors alone.
INSTALL := $(if $(shell command -v uv),uv pip install --quiet --python $(BIN)/python,$(BIN)/pip install --quiet --quiet \
	--disable-pip-version-check)
PACKAGES := $(shell grep --count == constraints.txt)
# A worker takes tests that follow each other, so that what a module's tests share is seldom made twice.
PYTEST := $(BIN)/python -m pytest -q --numprocesses=auto --maxprocesses=4 --dist=worksteal

.PHONY: demo test test-all fuzz kills lint setup FORCE

demo: setup
	@$(BIN)/bakeout demo

test: setup
	@$(PYTEST) -m "not slow"

test-all: setup
	@$(PYTEST)

# make fuzz INPUTS=50000 COMMANDS=500 SEED=7: so many inputs, some of them as whole commands.
INPUTS ?= 20000
COMMANDS ?= 300
SEED ?= 0

fuzz: setup
	@$(BIN)/python -m tests.hostile.fuzz --inputs $(INPUTS) --commands $(COMMANDS) --seed $(SEED)

# make kills KILLS=500 SEED=7
KILLS ?= 100

kills: setup
	@$(BIN)/python -m tests.hostile.kills --kills $(KILLS) --seed $(SEED)

lint: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/mypy --no-error-summary tests examples
	@$(BIN)/lint-imports --no-logo > .venv/imports.txt || { cat .venv/imports.txt; exit 1; }

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt .venv/files.txt
	@if [ -e $@ ]; then echo "Updating .venv: usually under half a minute"; else echo "Setting up .venv, once:" \
		"$(PACKAGES) packages, usually 2 to 4 minutes where they are in the cache of pip or uv"; fi >&2
	@$(INSTALL) --constraint constraints.txt setuptools
	@$(INSTALL) --constraint constraints.txt --no-build-isolation --config-settings editable_mode=strict \
		--editable ".[test,lint]"
	@touch $@
	@echo ".venv is ready" >&2

.venv/files.txt: .venv/bin/pip FORCE
	@find models graph_passes export -type f ! -path "*/__pycache__/*" | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed: give one, as in make PYTHON=python3.12 demo")'
	@$(PYTHON) -m venv .venv
