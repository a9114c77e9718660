# Each target makes its own environment in .venv. You need git, make and Python 3.11 or newer.
# To choose the interpreter: make test PYTHON=/path/to/python3

# $(call python,MINOR,NAMES): the first of NAMES that has venv and is Python 3.MINOR or newer.
python = $(shell for p in $(2); do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, $(1)))' \
	>/dev/null 2>&1 && { command -v $$p; break; }; done)

PYTHON ?= $(call python,11,python3.13 python3.12 python3.11 python3.14 python3 python)
# JAX 0.12 needs Python 3.12.
PYTHON_OLDEST ?= $(call python,11,python3.11 python3.12 python3.13 python3)
PYTHON_NEWEST ?= $(call python,12,python3.13 python3.12 python3.14 python3)
JOBS ?= 2
OUT ?= out

VENV := .venv
BIN := $(VENV)/bin
# A stamp records which extras are installed; it is out of date when the requirements change.
STAMP = $(VENV)/.installed
INPUTS := pyproject.toml constraints.txt
PIP := -m pip install --quiet --disable-pip-version-check
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/iterdiff/__init__.py)
# The lower bound in pyproject.toml, as the first release of its series.
OLDEST_JAX = $(shell sed -n 's/^ *"jax>=\([0-9.]*\)",/\1.0/p' pyproject.toml)
# The core tests are all but those of other libraries' solvers, studies, pages and benchmarks.
NOT_CORE := adapter benchmark cli contributing docs explore external solver_table study wrong_derivatives
CORE := $(foreach word,$(NOT_CORE),--ignore-glob='*/*$(word)*')

.DEFAULT_GOAL := help
.PHONY: help study test test-browser test-matrix lint docs bench campaign explore release clean
.PRECIOUS: $(STAMP)-%

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' \
		| expand -t 20

study: $(STAMP)-study  ## differentiate logistic regression on real data, and draw how it converges
	$(BIN)/iterdiff study logistic --out $(OUT)/logistic
	@echo "The pictures are in $(OUT)/logistic:"
	@find $(OUT)/logistic -name '*.png' -o -name '*.svg' | sort

test: $(STAMP)-test  ## run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-matrix: .venv-oldest/.installed .venv-newest/.installed  ## run the core tests on the oldest and the newest JAX
	@failed=0; for name in oldest newest; do \
		.venv-$$name/bin/python -c 'import jax; print("JAX", jax.__version__)'; \
		.venv-$$name/bin/python -m pytest -n $(JOBS) --dist worksteal $(CORE) $(ARGS) || failed=1; \
	done; exit $$failed

lint: $(STAMP)-lint,test  ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP)-docs  ## build the documentation, running every example
	$(BIN)/sphinx-build -W --keep-going -b html -d $(OUT)/doctrees docs $(OUT)/docs
	@echo "Open $(OUT)/docs/index.html"

bench: $(STAMP)-bench  ## measure against other libraries and hand-written code
	$(BIN)/python -m benchmarks --out $(OUT)/bench

campaign: $(STAMP)-test  ## make thousands of hostile calls, and judge what comes out
	$(BIN)/python -m tests.campaign --out $(OUT)/campaign

explore: $(STAMP)-explore  ## play with problems, algorithms and modes in the browser
	$(BIN)/iterdiff explore

test-browser: $(STAMP)-test,browser  ## test the explorer in a browser; installs one on Debian
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } \
		|| { echo "No chromium: install it, then run make test-browser again." >&2; exit 1; }
	$(BIN)/python -m pytest tests/explore/test_browser.py $(ARGS)

release: $(STAMP)-release  ## build and check the sdist and the wheel; uploads nothing
	@test -z "$$(git status --porcelain)" || { \
		echo "The working tree has changes: commit them before a release." >&2; exit 1; }
	@grep -qF "## [$(VERSION)]" CHANGELOG.md || { \
		echo "CHANGELOG.md has no section [$(VERSION)]: rename [Unreleased]." >&2; exit 1; }
	rm -rf $(OUT)/dist $(OUT)/release
	$(BIN)/python -m build --outdir $(OUT)/dist
	$(BIN)/python -m twine check --strict $(OUT)/dist/*
	$(BIN)/python -m venv $(OUT)/release
	$(OUT)/release/bin/python $(PIP) -c constraints.txt $(OUT)/dist/*.whl
	cd $(OUT) && release/bin/python -I -c 'import iterdiff; \
		[getattr(iterdiff, name) for name in iterdiff.__all__]; \
		assert iterdiff.__version__ == "$(VERSION)"; print("imported", iterdiff.__file__)'
	@ls -l $(OUT)/dist

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest $(OUT) docs/generated

# $(call environment,FOLDER,INTERPRETER,VARIABLE): make a virtual environment.
define environment
	@test -n "$(2)" || { echo "No suitable Python (with venv) was found:" \
		"name one: make $(3)=/path/to/python3" >&2; exit 1; }
	"$(2)" -m venv $(1) || { rm -rf $(1); exit 1; }
endef

$(BIN)/python:
	$(call environment,$(VENV),$(PYTHON),PYTHON)

$(STAMP)-%: $(INPUTS) | $(BIN)/python
	$(BIN)/python $(PIP) -c constraints.txt -e '.[$*]'
	@touch $@

.venv-oldest/.installed: $(INPUTS)
	$(call environment,.venv-oldest,$(PYTHON_OLDEST),PYTHON_OLDEST)
	grep -vE '^jax(lib)?==' constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/python $(PIP) -c .venv-oldest/constraints.txt -e '.[test]' \
		jax==$(OLDEST_JAX) jaxlib==$(OLDEST_JAX)
	@touch $@

# The newest of everything, as a user gets it: without our constraints.
.venv-newest/.installed: $(INPUTS)
	$(call environment,.venv-newest,$(PYTHON_NEWEST),PYTHON_NEWEST)
	.venv-newest/bin/python $(PIP) --upgrade -e '.[test]'
	@touch $@
