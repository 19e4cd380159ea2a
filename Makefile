# The commands of this project. `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LOCAL  := $(BIN)/machine-operator local
# Tests without a cluster mostly wait: they run beside those that have one.
BESIDE := --numprocesses 2

.DEFAULT_GOAL := help
.PHONY: help run stop clean test test-fast lint format lock crds docs bench-local bench-controller bench-gateway bench-guest bench-from-nothing packages

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

run: $(STAMP) packages ## From nothing to a running machine on this computer (again: quick and harmless)
	@scripts/run

stop: ## Take the local cluster down; machines and disks stay
	@if [ -x $(BIN)/machine-operator ]; then $(LOCAL) down; else echo "nothing is installed here"; fi

clean: ## Remove the local cluster with its data, and the virtual environment; the cache stays
	@if [ -x $(BIN)/machine-operator ]; then $(LOCAL) down --purge; fi
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

test: $(STAMP) ## Run the whole test suite, on a local cluster of its own
	@scripts/system-packages --test
	$(BIN)/pytest $(BESIDE)

test-fast: $(STAMP) ## Run only the tests that need no cluster
	$(BIN)/pytest $(BESIDE) -m "not cluster"

lint: $(STAMP) ## Check format, style, types and layers
	$(BIN)/ruff format --check operator tests bench examples scripts/machine-docs scripts/lifecycle-docs
	$(BIN)/ruff check operator tests bench examples scripts/machine-docs scripts/lifecycle-docs
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## Format the code
	$(BIN)/ruff format operator tests bench examples scripts/machine-docs scripts/lifecycle-docs
	$(BIN)/ruff check --fix --select I operator tests bench examples scripts/machine-docs scripts/lifecycle-docs

crds: $(STAMP) ## Write the CRDs again from the models
	$(BIN)/machine-operator crds > crds/machines.yaml

docs: $(STAMP) ## Write the generated pages of docs/ again from the models and tables
	$(BIN)/python scripts/machine-docs > docs/machine.md
	$(BIN)/python scripts/lifecycle-docs > docs/lifecycle.md
	$(BIN)/machine-operator controller --print-reference > docs/operations/configuration.md
	$(BIN)/machine-operator gateway --print-reference > docs/operations/gateway.md

lock: $(STAMP) ## Lock the dependencies of pyproject.toml again (by version and hash)
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile -q --upgrade --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --upgrade --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate --extra dev pyproject.toml -o requirements-dev.lock

bench-local: $(STAMP) ## Measure the local cluster: start, boot, memory (prints a table, writes bench/results/local.json)
	@scripts/system-packages
	$(BIN)/python bench/local.py

bench-controller: $(STAMP) ## Measure the operator beside a bare loop: times, throughput, writes, memory, fail-over (an hour)
	@scripts/system-packages
	$(BIN)/python bench/controller.py

bench-gateway: $(STAMP) ## Measure the gateway: requests per core, creates, streams (prints a table)
	@scripts/system-packages
	$(BIN)/python bench/gateway.py

bench-guest: $(STAMP) ## Measure the way into machines beside plain SSH: executions, terminals, previews, first output
	@scripts/system-packages --test
	$(BIN)/python bench/guest.py

bench-from-nothing: $(STAMP) ## Measure `make run` from a fresh clone with nothing cached, step by step (minutes, gigabytes)
	$(BIN)/python bench/local.py --from-nothing

packages:
	@scripts/system-packages

# The stamp is written last, so that an interrupted installation is taken up again.
$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Name another one: make PYTHON=python3.12 run"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Cannot make a virtual environment. On Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)
