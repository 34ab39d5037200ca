# Every target explains itself: make help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo dev test test-unit test-cluster test-e2e test-slow bench-loss lint format crds api-reference engine-table docs lock image audit pins workflows testbed-up testbed-down testbed-status clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
STAMP := $(VENV)/.synced
# The installed release that `make dev` stands in for.
NAMESPACE ?= qwen-system
RELEASE ?= qwen
PYTEST := $(BIN)/pytest
# What `make image` builds, with which program.
IMAGE ?= localhost/qwen-operator:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILDER ?= $(if $(shell command -v buildah),buildah,docker)
BASE ?=
ACTIONLINT_VERSION := v1.7.12

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	@$(PYTHON) -m venv --clear $(VENV) 2>/dev/null || { apt-get update -qq && apt-get install -qq -y python3-venv && $(PYTHON) -m venv --clear $(VENV); }
	@$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(STAMP) ## From a bare machine to a chat answer: test bed, chart, tiny Qwen model, curl and OpenAI client (KUBECONFIG=... uses your cluster)
	@$(BIN)/python -m tests.testbed.demo

dev: $(STAMP) ## Run the operator outside the cluster (current kubeconfig) and restart it after changes: NAMESPACE=qwen-system RELEASE=qwen
	@$(BIN)/python -m tools.dev --namespace $(NAMESPACE) --release $(RELEASE)

test: lint test-unit test-cluster test-e2e ## Run everything that CI runs: lint, unit, cluster and end-to-end tests; installs what it needs
	@$(BIN)/python -m tests.testbed down

test-unit: $(STAMP) ## Test the pure core and the reconcile loop in memory, without a cluster
	$(PYTEST) -n 2 tests/unit

test-cluster: $(STAMP) ## Test operator and chart on a real API server with simulated GPU nodes
	@$(BIN)/python -m tests.testbed up
	$(PYTEST) -n 4 -m "cluster and not slow and not alone" --timeout 600 tests/cluster
	$(PYTEST) -m "cluster and not slow and alone" --timeout 600 tests/cluster

test-e2e: $(STAMP) ## Test real pods with the real SGLang on the CPU behind the real gateway
	@$(BIN)/python -m tests.testbed up
	$(PYTEST) -m "e2e and not slow" --timeout 900 tests/e2e

test-clients: $(STAMP) ## Run clients that people use (OpenAI, Anthropic, LangChain, LlamaIndex, LiteLLM, lm-eval, Vercel AI) against the test bed; needs node
	@$(BIN)/python -m tests.testbed up
	$(PYTEST) -s -m e2e --timeout 900 tests/e2e/test_clients.py

test-slow: $(STAMP) ## Run the slow tests: outages, ten idle minutes, crashes of the test bed, a cold build, an hour of fuzzing; not part of CI
	@$(BIN)/python -m tests.testbed up
	$(PYTEST) -m slow --timeout 3600 tests/cluster tests/e2e
	$(PYTEST) -s --timeout 5400 tests/slow
	QWEN_FUZZ_EXAMPLES=50000 $(PYTEST) -n 2 --timeout 5400 tests/unit/fuzz
	@$(BIN)/python -m tests.testbed down

bench-loss: $(STAMP) ## Count what clients lose over rollout, scaling, sleep and crashes, with the real gateway on loopback
	@$(BIN)/python -m bench.loss

lint: $(STAMP) ## Run ruff, mypy --strict and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## Let ruff format and fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

crds: $(STAMP) ## Write crds/ and the chart's copy from the Python types
	@$(BIN)/qwen-operator crds --output crds
	@install -D -m 0644 crds/*.yaml -t charts/qwen-operator/files/crds

api-reference: $(STAMP) ## Write docs/reference/api.md from the Python types
	@mkdir -p docs/reference
	@$(BIN)/python -m tools.api_reference > docs/reference/api.md

docs: $(STAMP) ## Build the documentation site into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html, or serve it: $(BIN)/python -m mkdocs serve"

engine-table: $(STAMP) ## Write the option table of an SGLang version from its package: make engine-table VERSION=0.5.23
	@$(BIN)/python -m tools.engine_table $(VERSION)

lock: $(STAMP) ## Resolve the lock files again (after a change of pyproject.toml)
	@$(BIN)/uv pip compile --quiet pyproject.toml --group dev --extra gateway --universal --python-version 3.11 --generate-hashes --no-header -o requirements.lock
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra gateway --universal --python-version 3.11 --generate-hashes --no-header -o runtime/requirements.lock

image: $(STAMP) ## Build the image and its SBOM into dist/: BASE=python@sha256:... BUILDER=buildah|docker
	@mkdir -p dist && rm -f dist/qwen-operator.tar
	@if [ "$(BUILDER)" = docker ]; then \
		docker build $(if $(BASE),--build-arg BASE=$(BASE)) -f runtime/Containerfile -t $(IMAGE) . && \
		docker save -o dist/qwen-operator.tar $(IMAGE); \
	else \
		buildah bud $(if $(BASE),--build-arg BASE=$(BASE)) -f runtime/Containerfile -t $(IMAGE) . && \
		buildah push $(IMAGE) oci-archive:dist/qwen-operator.tar:$(IMAGE); \
	fi
	@$(BIN)/python -m tools.sbom --check dist/qwen-operator.tar > dist/qwen-operator.cdx.json
	@echo "dist/qwen-operator.tar is $(IMAGE); dist/qwen-operator.cdx.json lists what is in it"

audit: $(STAMP) ## Fail if a package of the lock files has a known vulnerability, or cannot be looked up
	@$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r runtime/requirements.lock
	@$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r requirements.lock

pins: $(STAMP) ## Name the images and actions that are not pinned by content: STRICT=--strict makes it an error
	@$(BIN)/python -m tools.pins $(STRICT)

workflows: ## Check the syntax of the workflows (needs Go)
	@go run github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION) -shellcheck= -pyflakes=

testbed-up: $(STAMP) ## Start a real cluster on this machine (needs root): control plane, one node that claims 8 GPUs, simulated nodes, images; NODES=3 adds two real nodes of one GPU each
	@$(BIN)/python -m tests.testbed up $(if $(NODES),--nodes $(NODES))
	@$(BIN)/python -m tests.testbed status

testbed-down: $(STAMP) ## Remove the test bed; only its cache stays
	@$(BIN)/python -m tests.testbed down

testbed-status: $(STAMP) ## Show which parts of the test bed run
	@$(BIN)/python -m tests.testbed status

clean: ## Remove the virtual environment and tool caches of this folder
	@rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
