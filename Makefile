# `make quickstart` runs the main job, `make test` passes the tests; each makes .venv when there is none.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install install-dev quickstart test test-ray test-browser test-slow lint format wheel clean

help: ## What there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/installed ## Make .venv with what a run needs

install-dev: $(VENV)/installed-dev ## The same, and what the tests need

quickstart: $(VENV)/installed ## Train on 5,000 real MNIST digits held by 100 Flower clients
	$(BIN)/python -m fedsim +experiment=quickstart

test: $(VENV)/installed-dev ## Run the tests
	$(BIN)/python -m pytest -n 2

test-ray: $(VENV)/installed-dev ## Hold grid=ray and Flower's own simulation on Ray against grid=inprocess
	$(PIP) -e '.[ray]'
	$(BIN)/python -m pytest -m ray

test-browser: $(VENV)/installed-dev ## Open the pages for people in a headless Chromium (apt-get install chromium)
	$(PIP) -e '.[browser]'
	$(BIN)/python -m pytest -m browser

test-slow: $(VENV)/installed-dev ## Hold the experiments at their full size to their accuracies (half an hour)
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev ## Put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/installed-dev ## Build dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## Remove .venv and what tools left
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing fedsim into $(VENV), which takes a minute or two"
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing what the tests need into $(VENV)"
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps hydra-optuna-sweeper
	@touch $@
