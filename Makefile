# The only door: what CI runs is what you run. Uses .venv where there is one (`make venv`).

PY ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
PYTEST = $(PY) -m pytest $(PYTEST_ARGS)

.PHONY: help venv check format test test-slow fuzz sim conformance protos bench docs

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: ## an environment with everything that development needs
	python3 -m venv .venv
	.venv/bin/pip install --quiet --editable '.[dev]'

check: ## format, lint, types, import contracts, tidiness: seconds, before every commit
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy
	$(PY) -c 'from importlinter.cli import lint_imports_command as main; main()'
	$(PYTEST) tests/tidy

format: ## lets ruff write what it can
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

test: ## the default suite: minutes
	$(PYTEST)

sim: ## a thousand random histories of the scheduler under its laws: two minutes on two cores
	$(PY) -m headrace simulate --fuzz 1000 --jobs 2

test-slow: ## soak and conformance runs, fuzzing for some minutes
	$(PYTEST) -m slow

fuzz: ## the same fuzzing, ten times as long
	FUZZ_FACTOR=10 $(PYTEST) -m slow $$(grep -rl --include=*.py 'from tests.fuzzing import' tests)

conformance: ## every client x every feature, and every difference to Triton; writes the reports
	$(PY) -W ignore -m conformance table --write
	$(PY) -W ignore -m conformance differential --write

bench: ## the benchmarks; one JSON line per result, also in build/bench
	$(PY) -m benchmarks

protos: ## compiles the .proto files of gRPC and config.pbtxt
	$(PY) -m grpc_tools.protoc -Isrc/headrace/protos --include_imports \
	  --descriptor_set_out=src/headrace/protos/descriptors.binpb src/headrace/protos/*.proto

docs: ## checks what the documents claim: links, commands, code, the life of a request
	$(PYTEST) tests/tidy/test_docs.py tests/tidy/test_architecture.py tests/docs
