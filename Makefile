# `make` alone lists the targets.

PYTHON ?= python3
ARGS ?=

VENV := .venv
# Written only after a successful install, and inside the environment: gone with it.
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
# --prefer-binary: an older wheel rather than a newer source package, which would need a compiler.
INSTALL := $(VENV)/bin/python -m pip install --quiet --no-input --disable-pip-version-check --prefer-binary

# Else every process that a test or a bench starts would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv run test lint types bench kills clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' Makefile
	@echo '  Options of the program started: make run ARGS="--port 5080 --workers 4"'

venv: $(STAMP) ## make the environment in .venv (done once, redone when pyproject.toml changes)
	@:

run: venv ## start the SIP responder on 127.0.0.1:5060/TCP with 2 workers; Ctrl-C ends it
	@exec $(VENV)/bin/python -m examples.telecom $(ARGS)

test: venv ## run the test suite
	@exec $(VENV)/bin/python -m pytest $(ARGS)

lint: venv ## check the style (ruff)
	@exec $(VENV)/bin/python -m ruff check $(ARGS)

types: venv ## check the types (mypy, strict)
	@exec $(VENV)/bin/python -m mypy $(ARGS)

bench: $(BENCH_STAMP) ## compare with other ways between processes
	@exec $(VENV)/bin/python -m bench $(ARGS)

kills: $(BENCH_STAMP) ## kill processes that share a transport, ours and others; do the rest go on?
	@exec $(VENV)/bin/python -m bench.kills $(ARGS)

clean: ## remove the environment, caches and whatever else these targets made
	@rm -rf $(VENV) build dist aembus.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# An environment whose interpreter is gone (an upgraded Python) is made anew, stamp or not.
ifneq ($(shell test -x $(VENV)/bin/python && echo there),there)
.PHONY: $(STAMP)
endif

# Without a stamp nothing of what is there can be trusted (an interrupted attempt): start afresh.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "aembus needs Python 3.11 or later, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)" >&2; \
	    echo "Name another one: make venv PYTHON=python3.12" >&2; \
	    exit 1; }
	@if [ -f $@ ] && [ -x $(VENV)/bin/python ]; then \
	    echo "Updating $(VENV), since pyproject.toml changed ..."; \
	else \
	    echo "Making $(VENV), once: this takes about a minute ..."; \
	    $(PYTHON) -m venv --clear $(VENV); \
	fi
	@rm -f $@
	@$(INSTALL) -e '.[test,lint]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@echo "Installing what the comparison needs ..."
	@$(INSTALL) -e '.[bench]'
	@touch $@
