# `make demo` and `make test` need Python 3.10 or later and nothing else: no GPU, no CUDA toolkit, no host compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
REFEREE := tests/cpu/cutlass/requirements.txt
DEMO := examples/models/qwen3-30b-a3b-gptq-int4/config.json

.PHONY: help demo test smoke lint types layers gpu-test clean

help:
	@echo "make demo      compile the kernels of a real model into build/"
	@echo "make test      run the tests that need no GPU"
	@echo "make smoke     compile a fixed set of kernels; fail on spills or too many registers"
	@echo "make lint      check style (ruff); make types: mypy; make layers: import layering"
	@echo "make gpu-test  run the tests that need a GPU and torch"
	@echo "make clean     remove .venv and build"

demo: $(VENV)/.demo
	$(BIN)/billhook build $(DEMO) --arch 9.0a

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not gpu" tests/cpu

smoke: $(VENV)/.dev
	$(BIN)/python -m pytest tests/smoke

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

# torch is not installed here: a GPU machine's own is used.
gpu-test:
	PYTHONPATH=src $(PYTHON) -m pytest -m gpu tests/gpu

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Billhook needs Python 3.10 or later; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Stamps: the environment is set up once, and again when pyproject.toml changes.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[cuda]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(REFEREE) | $(BIN)/python
	$(PIP) install --editable '.[cuda,dev]'
	$(PIP) install --no-deps --requirement $(REFEREE)
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build
