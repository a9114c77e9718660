# Each target makes its own environment in .venv; all it needs is git, make and Python 3.11+.
# Another interpreter: make test PYTHON=/path/to/python3

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 python; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && { command -v $$p; break; }; done)
JOBS ?= 2
OUT ?= out

VENV := .venv
BIN := $(VENV)/bin
# Stamps say which extras are installed; they go stale with the lists of requirements.
STAMP = $(VENV)/.installed
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help study test lint docs bench explore clean
.PRECIOUS: $(STAMP)-%

help:
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 16

study: $(STAMP)-study  ## differentiate logistic regression on real data, and draw how it converges
	$(BIN)/iterdiff study logistic --out $(OUT)/logistic
	@echo "The pictures are in $(OUT)/logistic:"
	@find $(OUT)/logistic -name '*.png' -o -name '*.svg' | sort

test: $(STAMP)-test  ## run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(STAMP)-lint,test  ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP)-docs  ## build the documentation, running every example
	$(BIN)/sphinx-build -W --keep-going -b html -d $(OUT)/doctrees docs $(OUT)/docs
	@echo "Open $(OUT)/docs/index.html"

bench: $(STAMP)-bench  ## measure against the peers
	$(BIN)/python -m benchmarks --out $(OUT)/bench

explore: $(STAMP)-explore  ## look at a study's dataset interactively
	$(BIN)/iterdiff explore

clean:
	rm -rf $(VENV) $(OUT) docs/generated

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer (with venv) was found;" \
		"name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(STAMP)-%: $(INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@
