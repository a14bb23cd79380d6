# `make demo` and `make test` need nothing but Python 3.11 or newer and make: each does its own set-up, once.
# VENV, DEMO and PYTHON can be given: make demo VENV=/tmp/venv DEMO=/tmp/demo PYTHON=python3.12
# `make test-floor` and `make test-matrix` take TESTS: make test-matrix TESTS="tests/ops tests/data"

VENV ?= .venv
DEMO ?= demo
FLOOR ?= .venv-floor
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# A Python of a version: on PATH, or one that pyenv has installed.
find_python = $(firstword $(shell python$(1) -c 'import sys; print(sys.executable)' 2>/dev/null) \
	$(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python))
FLOOR_PYTHON ?= $(or $(call find_python,3.11),$(PYTHON))

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SHARED := $(or $(CODETR_SHARED),../shared)
CASES = $(or $(wildcard $(SHARED)/golden/cases/*/case.json),$(wildcard tests/golden/cases/*/case.json))
WEIGHTS := $(DEMO)/run/checkpoints/last/model.safetensors

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-floor test-matrix lint format type parity docs pages bench wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(INSTALLED) ## create the environment (.venv, or VENV=...) and install the program and the developers' tools

$(INSTALLED): pyproject.toml hatch_build.py codetr_cli/ops/deform_attn.c codetr_cli/ops/compile_kernel.py
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on PATH: name one with make PYTHON=/path/to/python"; exit 5; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: setup ## write a synthetic data set, train a tiny Co-DINO on it, evaluate it, draw its detections
	test -e $(DEMO)/data/annotations/instances_val2017.json || $(BIN)/codetr prepare --demo $(DEMO)/data --no-link
	$(BIN)/codetr train --preset co_dino_tiny --data $(DEMO)/data --run $(DEMO)/run --device cpu --procs 2 \
		--set train.epochs=10
	$(BIN)/codetr eval $(WEIGHTS) --data $(DEMO)/data --report
	$(BIN)/codetr predict $(DEMO)/data/val2017 --checkpoint $(WEIGHTS) --out $(DEMO)/pictures

# One thread a process: several processes with a thread a core each would only wait for each other. Files in the order of
# their names: by number of tests, those with few and long ones would come last and keep one core busy alone.
test test-all test-floor test-matrix: export OMP_NUM_THREADS = 1

test: setup ## run the tests that every change must pass
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations 25

test-all: setup ## run the slow tests too
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not network"

test-floor: ## run the tests with the oldest supported releases (tests/floor.txt), in an environment of its own
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on PATH: name one with make PYTHON=/path/to/python"; exit 5; }
	test -x $(FLOOR)/bin/python || $(FLOOR_PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --constraint tests/floor.txt --editable . \
		pytest pytest-xdist html5lib build hatchling
	$(FLOOR)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

test-matrix: ## run the tests on each Python from 3.11 to 3.13 that is here, each in a fresh environment that is removed
	@for python in $(foreach version,3.11 3.12 3.13,$(call find_python,$(version))); do \
		echo "== $$python"; folder=$$(mktemp -d); \
		$$python -m venv $$folder/venv && $$folder/venv/bin/python -m pip install --quiet --editable ".[dev]" && \
		$$folder/venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS); \
		failed=$$?; rm -rf $$folder; test $$failed = 0 || exit $$failed; \
	done

lint: setup ## check format, style and who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: setup ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

type: setup ## check the types
	$(BIN)/mypy

parity: setup ## compare every stage with the numbers recorded from the published code (CODETR_SHARED, else ../shared)
	$(BIN)/python -m tests.golden --quiet --skip-unsupported $(dir $(CASES))

docs: setup ## build the documentation site into build/site; a broken link or page is an error
	@test -x $(BIN)/zensical || $(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/zensical build --clean --strict --config-file mkdocs.yml

pages: setup ## rewrite the generated parts of the documentation: zoo, settings, help texts
	$(BIN)/python -m tests.zoo_table
	$(BIN)/python -m tests.settings_page
	$(BIN)/python -m tests.help_texts

bench: setup ## measure the speed of inference on this machine
	$(BIN)/codetr bench

wheel: setup ## build the wheel into dist/
	$(BIN)/hatchling build --target wheel

clean: ## remove what was built; runs, data and demo stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
