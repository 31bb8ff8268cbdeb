# make demo, make test, make test-all, make fuzz, make kills, make lint: each sets up .venv first, once, and again after a change of
# pyproject.toml, of constraints.txt, or of which files the packages hold (a strict editable install links them singly).
# make test-transformers5: what is tested beside transformers 5, in an environment of its own, .venv-transformers5.

PYTHON ?= python3
BIN := .venv/bin
# uv where it is installed, pip otherwise. Both report errors alone.
install = $(if $(shell command -v uv),uv pip install --quiet --python $(1)/bin/python,$(1)/bin/pip install --quiet --quiet \
	--disable-pip-version-check)
PACKAGES := $(shell grep --count == constraints.txt)
# The second environment: its directory, and its versions.
SECOND := .venv-transformers5
SECOND_CONSTRAINTS := tests/transformers5/constraints.txt
# A worker takes tests that follow each other, so that what a module's tests share is seldom made twice.
OPTIONS := -q --numprocesses=auto --maxprocesses=4 --dist=worksteal
PYTEST := $(BIN)/python -m pytest $(OPTIONS)

.PHONY: demo test test-transformers5 test-all fuzz kills lint setup FORCE

demo: setup
	@$(BIN)/bakeout demo

test: setup
	@$(PYTEST) -m "not slow"

test-transformers5: $(SECOND)/ready
	@$(SECOND)/bin/python -m pytest $(OPTIONS) -m "not slow" $$(cat tests/transformers5/files.txt)

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
	@$(call install,.venv) --constraint constraints.txt setuptools
	@$(call install,.venv) --constraint constraints.txt --no-build-isolation --config-settings editable_mode=strict \
		--editable ".[test,lint]"
	@touch $@
	@echo ".venv is ready" >&2

.venv/files.txt: .venv/bin/pip FORCE
	@find models graph_passes export -type f ! -path "*/__pycache__/*" | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(SECOND)/ready: pyproject.toml $(SECOND_CONSTRAINTS)
	@echo "Setting up $(SECOND): usually 2 to 4 minutes where its packages are in the cache of pip or uv" >&2
	@test -e $(SECOND)/bin/pip || $(PYTHON) -m venv $(SECOND)
	@$(call install,$(SECOND)) --constraint $(SECOND_CONSTRAINTS) setuptools
	@$(call install,$(SECOND)) --constraint $(SECOND_CONSTRAINTS) --no-build-isolation --editable ".[test-any]"
	@touch $@
	@echo "$(SECOND) is ready" >&2

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed: give one, as in make PYTHON=python3.12 demo")'
	@$(PYTHON) -m venv .venv
