# Every target makes .venv on first use, and again when what it is made of changes.
PYTHON ?= python3
MLFLOW_URI ?= sqlite:///state/demo/mlflow.db
MLFLOW_PORT ?= 5000

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Three files at a time keep two cores busy, for tests wait too; the long files come first by name, and begin first.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-faults test-long ui lint bench

help: ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-11s %s\n", $$1, $$2 }'

setup: $(STAMP) ## make the virtual environment in .venv

demo: $(STAMP) ## train on a real stream with a local Kafka, in about a minute
	$(BIN)/evertrain demo

test: $(STAMP) ## run all tests and print branch coverage (Java and Maven serve the real Kafka)
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(SIDE_BY_SIDE)
	$(BIN)/coverage combine --quiet 2> /dev/null  # a killed process leaves half a file
	rm -f .coverage.*
	$(BIN)/coverage report --fail-under=90

test-faults: $(STAMP) ## run the slow tests too: real kills, a broken Kafka, MLflow and disk
	$(BIN)/python -m pytest -m slow

test-long: $(STAMP) ## run the proofs of docs/guarantees.md with their full counts: hours
	$(BIN)/python -m tests.model.protocol
	$(BIN)/python -m tests.faults.syscalls
	$(BIN)/python -m tests.faults.power --states 100000
	$(BIN)/python -m tests.faults.forget
	$(BIN)/python -m tests.faults.kill --kills 10000
	$(BIN)/python -m tests.faults.fuzz json jobfile manifest ledger --inputs 1250000
	$(BIN)/python -m tests.faults.kill --real --kills 300

ui: $(STAMP) ## open the demo's models and metrics: MLflow on http://localhost:5000
	$(BIN)/mlflow ui --backend-store-uri "$(MLFLOW_URI)" --port $(MLFLOW_PORT)

lint: $(STAMP) ## check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(STAMP) ## measure rows/s against the naive loop and training alone
	$(BIN)/python -m benchmarks.throughput -o json

$(STAMP): pyproject.toml requirements-dev.txt
	@if command -v uv > /dev/null; then \
		set -ex; \
		uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV); \
		uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements-dev.txt; \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
		set -ex; \
		"$(PYTHON)" -m venv $(VENV); \
		$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.txt; \
		$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .; \
	fi
	$(BIN)/python -m consumers.precompile
	$(BIN)/python -m pipeline.precompile
	@touch $@
