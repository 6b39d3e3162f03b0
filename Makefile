# Every command for this repository; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KIT := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/glm4-deploy
ARGS ?=
ENGINES ?=
OUT ?=

.PHONY: help venv up down smoke logs status demo demo-fault test test-fast fuzz lint unit e2e test-needs matrix docs compose dist requirements eval-detector scan clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "glm4-deploy needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "cannot create a virtual environment: apt-get install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable . --group dev
	@touch $@

venv: $(READY) ## Create the virtual environment

up: $(READY) ## Start the engine with the settings of glm4.yaml, and gate it (ARGS="--profile gb10 …")
	@$(KIT) up $(ARGS)

down: $(READY) ## Stop and remove the engine; caches and the model stay
	@$(KIT) down $(ARGS)

smoke: $(READY) ## Check the running engine (ARGS="--suite full")
	@$(KIT) smoke $(ARGS)

logs: $(READY) ## Show the engine's log (ARGS="-f")
	@$(KIT) logs $(ARGS)

status: $(READY) ## Show what runs, and how
	@$(KIT) status $(ARGS)

demo: $(READY) ## Without a GPU: verify, repair, start, gate and stop a tiny GLM-4 in NVFP4, in the publisher's vLLM, 0.13
	@scripts/demo.sh

demo-fault: $(READY) ## The same, then the broken checkpoint: the gate fails, and the good release comes back
	@scripts/demo.sh fault

test-needs: $(READY) ## Install what the tests need besides Python packages
	@scripts/test-needs.sh

test: test-needs lint ## Everything: style, types, layers, unit and end-to-end tests
	@scripts/test.sh $(ARGS)

test-fast: $(READY) ## Unit tests and journeys, in parallel: no Docker, no vLLM, 5 to 20 minutes
	@$(BIN)/pytest -n 4 tests/journeys tests/unit $(ARGS)

MINUTES ?= 30
fuzz: $(READY) ## Hostile inputs, new ones each round (MINUTES=30)
	@scripts/fuzz.sh $(MINUTES)

lint: $(READY) ## Style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

unit: $(READY) ## Only the unit tests
	@$(BIN)/pytest tests/unit $(ARGS)

e2e: test-needs ## Only the end-to-end tests: a real Docker engine, a real vLLM on the CPU
	@scripts/test.sh tests/e2e $(ARGS)

matrix: $(READY) ## Every engine-dependent promise on real engines (ENGINES="0.13.0 0.20.1"; OUT=DIR keeps table and logs)
	@test -n "$(ENGINES)" || { scripts/cpu-engine.sh --list; echo 'name some: make matrix ENGINES="0.13.0 0.20.1"' >&2; exit 2; }
	@scripts/test.sh tests/e2e/test_engines.py --engines "$(ENGINES)" $(if $(OUT),--engines-out $(OUT)) $(ARGS)

docs: $(READY) ## Regenerate the generated parts of the documentation
	@$(BIN)/cog -r -I . README.md docs/*.md docs/reference/*.md
	@$(BIN)/python -m scripts.reference

compose: $(READY) ## Render compose/ (one file per profile) and the golden files again
	@$(BIN)/python -m tests.golden.render

scan: $(READY) ## Other projects' tools over what is rendered, and the SBOM of the kit's image (OUT=DIR)
	@scripts/scan.sh $(OUT)

dist: ## Build what a release publishes, and check it: sdist, wheel, constraints, SBOM (OUT=DIR; needs uv)
	@scripts/dist.sh $(OUT)

requirements: $(READY) ## Lock the kit image's packages again, with their hashes
	@grep '^# ' templates/image/requirements.txt >$@.tmp
	@$(BIN)/uv pip compile pyproject.toml --extra guard --extra notify --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --quiet >>$@.tmp && mv $@.tmp templates/image/requirements.txt

eval-detector: $(READY) ## Rebuild the detector's corpus and its report in docs/lab/detector.md
	@$(BIN)/python -m benchmarks.detector

clean: ## Remove the virtual environment and caches of this tree
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
