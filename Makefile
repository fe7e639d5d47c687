# make serve   the service on 127.0.0.1:8000 with the shipped model
# make test    all tests but the browser's and the load test's
# make lint    ruff and mypy
# make up      the service in a container, on a GPU if Docker has one; VARIANT=cpu, MONITORING=1
# make down    stops it
# make loadtest       capacity and latency under rising load; report in results/
# make test-browser   the page in a real Chromium, which must be installed
# Each installs what it needs into .venv, once, and again when a requirements file changes.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# CUDA's libraries only if there is a driver for them.
SERVE := requirements/$(if $(shell command -v nvidia-smi 2>/dev/null),gpu,serve).txt
UV := $(shell command -v uv 2>/dev/null)
# uv installs in a fraction of pip's time; pip is used if there is no uv.
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

# An environment whose Python is gone, as after an upgrade of the system's, is rebuilt with what is asked for.
ENVIRONMENT := $(if $(shell test -x $(BIN)/python && echo there),,environment)
# The development environment holds everything that serving needs: if it exists, it is the one kept up to date.
SERVED_BY := $(or $(if $(ENVIRONMENT),,$(wildcard $(VENV)/.dev)),$(SERVE))

.DEFAULT_GOAL := help
.PHONY: help serve test test-browser lint format up down loadtest environment requirements clean
# All share one environment, which two installers at once would break.
.NOTPARALLEL:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

serve: $(VENV)/.serve
	$(BIN)/python -m app

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-browser: $(VENV)/.dev $(VENV)/.browser
	$(BIN)/python -m pytest tests/browser

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up:
	@deploy/up

down:
	@docker info >/dev/null 2>&1 || { echo "error: Docker does not answer, so there is nothing to stop."; exit 2; }
	@if docker compose version >/dev/null 2>&1; then SETTINGS=deploy/detector.env docker compose --profile '*' down; \
	else SETTINGS=deploy/detector.env COMPOSE_PROFILES='*' docker-compose down; fi

loadtest: $(VENV)/.serve $(VENV)/.load
	$(BIN)/python -m tests.load

# ONNX Runtime has no wheel for Python 3.15 yet.
environment:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
		|| { echo "Python 3.11 to 3.14 is needed, but $(PYTHON) is $$($(PYTHON) --version): make ... PYTHON=python3.14"; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }

$(VENV)/.serve: $(SERVED_BY) $(ENVIRONMENT)
	@test -e $(VENV)/.dev || $(INSTALL) -r $(SERVE)
	@touch $@

$(VENV)/.dev $(VENV)/.load $(VENV)/.browser: $(VENV)/.%: requirements/%.txt $(ENVIRONMENT)
	$(INSTALL) -r $<
	@touch $@

# Pins versions for the current pyproject.toml; UPGRADE=1 takes the newest. Needs uv.
requirements: COMPILE = uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header $(if $(UPGRADE),--upgrade)
requirements:
	for extra in serve dev gpu; do \
		$(COMPILE) $$([ $$extra = serve ] || echo --extra $$extra) pyproject.toml -o requirements/$$extra.txt || exit; \
	done
	for group in load browser; do \
		$(COMPILE) --group pyproject.toml:$$group -o requirements/$$group.txt || exit; \
	done

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
