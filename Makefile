# Everything a person types here. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KIT := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/glm4-deploy
ARGS ?=

.PHONY: help venv up down smoke logs status demo test test-fast lint unit e2e test-needs docs compose eval-detector clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "glm4-deploy needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment: apt-get install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable . --group dev
	@touch $@

venv: $(READY) ## Make the virtual environment

up: $(READY) ## Start on this host by glm4.yaml, and gate (ARGS="--profile gb10 …")
	@$(KIT) up $(ARGS)

down: $(READY) ## Stop and remove the engine; caches and model stay
	@$(KIT) down $(ARGS)

smoke: $(READY) ## Ask the running engine (ARGS="--suite full")
	@$(KIT) smoke $(ARGS)

logs: $(READY) ## Show the engine's log (ARGS="-f")
	@$(KIT) logs $(ARGS)

status: $(READY) ## Show what runs and which path the engine took
	@$(KIT) status $(ARGS)

demo: $(READY) ## No GPU needed: a tiny GLM-4 on the CPU, rendered, started, judged, stopped
	@scripts/demo.sh

test-needs: $(READY) ## Install what the tests need besides Python packages
	@scripts/test-needs.sh

test: test-needs lint ## Everything: style, types, layers, unit and end-to-end tests
	@scripts/test.sh $(ARGS)

test-fast: $(READY) ## Unit tests and journeys, in parallel: no Docker, no vLLM, under 3 minutes
	@$(BIN)/pytest -n auto tests/journeys tests/unit $(ARGS)

lint: $(READY) ## Style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

unit: $(READY) ## Unit tests alone
	@$(BIN)/pytest tests/unit $(ARGS)

e2e: test-needs ## End-to-end tests alone: a real Docker engine, a real vLLM on the CPU
	@scripts/test.sh tests/e2e $(ARGS)

docs: $(READY) ## Write the generated parts of the documentation
	@$(BIN)/cog -r -I . README.md docs/*.md docs/reference/*.md
	@$(BIN)/python -m scripts.reference

compose: $(READY) ## Render compose/ anew, one file a profile
	@for name in $$($(BIN)/glm4-deploy profiles | cut -d' ' -f1); do $(BIN)/glm4-deploy render --profile $$name -o compose/$$name.yaml; done
	@$(BIN)/python -m tests.golden.render

eval-detector: $(READY) ## Rebuild the detector's corpus and its report in docs/lab/detector.md
	@$(BIN)/python -m benchmarks.detector

clean: ## Remove the virtual environment and caches of this tree
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
