# SPDX-License-Identifier: Apache-2.0
# `make serve` and `make test` need nothing but Python 3.11+, Rust and a C++ compiler.

MODEL ?= python/vllm_metal/demo_model
PORT ?= 8000
VENV ?= .venv
PYTEST_ARGS ?=

export VENV
bin = $(VENV)/bin
sources = Cargo.toml Cargo.lock build.rs pyproject.toml requirements/dev.txt \
	$(shell find src lowering python/build_backend python/vllm_wheel -name target -prune -o -type f \
		\( -name '*.rs' -o -name '*.metal' -o -name '*.py' -o -name '*.toml' -o -name '*.cpp' -o -name '*.h' \) -print)

.PHONY: help setup serve test lint format bench coverage ops requirements clean

help:
	@echo 'make serve [MODEL=..] [PORT=..]  set up, build, and serve a model (default: the demo model)'
	@echo 'make test                        set up, build, all checks and all tests'
	@echo 'make lint | format | bench       checks alone, formatting, benchmarks'
	@echo 'make ops                         which ATen operators work: docs/ops.md'
	@echo 'make coverage                    which architectures work: docs/coverage.md'
	@echo 'make setup                       the environment and the native module alone'
	@echo 'make requirements                pin the newest allowed versions'
	@echo 'make clean                       remove all that was built'

# Built again when a source of the native module or a pinned version changed.
$(VENV)/.ready: $(sources)
	./install.sh
	@touch $@

setup: $(VENV)/.ready

serve: setup
	PATH="$(abspath $(bin)):$$PATH" $(bin)/vllm serve $(MODEL) --port $(PORT)

# Two processes: the tests of a file share engines and models, and each computes on one thread.
test: lint
	cargo test --workspace --no-default-features
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

format: setup
	cargo fmt --all
	$(bin)/ruff check --fix
	$(bin)/ruff format

bench: setup
	cargo bench -p lowering
	@for script in benches/*.py; do echo "== $$script"; $(bin)/python "$$script" || exit 1; done

# Every operator of PyTorch's own database, in every dtype: an hour or so.
ops: setup
	cd tests && ../$(bin)/python -m ops

# Every text architecture that vLLM runs, tiny: a quarter of an hour or so.
coverage: setup
	cd tests && ../$(bin)/python -m zoo --json ../.build/coverage.json --write ../docs/coverage.md

uv = $(or $(shell command -v uv),.build/uv/bin/uv)
compile = $(uv) pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	--no-annotate --custom-compile-command 'make requirements'

# No package index and no path may get into these files: see tests/packaging.
requirements: setup
	$(compile) pyproject.toml --no-emit-package vllm -o requirements/runtime.txt
	$(compile) pyproject.toml --no-emit-package vllm --extra dev -o requirements/dev.txt
	printf 'uv\n' | $(compile) - -o requirements/uv.txt

clean:
	rm -rf target .build .cargo/config.toml $(VENV) python/vllm_metal/_core*.so
