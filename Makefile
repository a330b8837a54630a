# Everything below runs from a fresh clone: no root, no account, no GPU. Packages go to .venv/, results to demo/ and example/.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3,$(if $(shell $(p) -c 'import sys' 2>/dev/null && echo y),$(p))))
BIN := .venv/bin
# caches of tools stay in the clone
export PYTHONDONTWRITEBYTECODE := 1
export HF_HOME := $(CURDIR)/.cache/huggingface
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export WANDB_CACHE_DIR := $(CURDIR)/.cache/wandb
export WANDB_DATA_DIR := $(CURDIR)/.cache/wandb
export WANDB_CONFIG_DIR := $(CURDIR)/.cache/wandb
DEMO := split=color_object local=none
EXTRAS ?= slurm

.DEFAULT_GOAL := help
.PHONY: help demo example test test-long mutants lint docs bundle format clean cluster cluster-down

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/ready ## convert the sample recordings, fine-tune the tiny model, evaluate it (a few minutes on a CPU)
	@scripts/demo.sh

example: .venv/ready-dev ## record, train all of a small N1.7 from random weights, evaluate in closed loop (CPU, 1 to 2.5 hours)
	@scripts/example.sh

test: .venv/ready-dev lint ## lint, type-check and run every test that can run here
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-long: .venv/ready-dev ## the rest, two hours: kills at random moments, fuzzers, the slowest tests, disturbances of a throw-away cluster
	$(BIN)/python -m pytest -m long -n 2 --dist loadgroup --no-loadscope-reorder

mutants: .venv/ready-dev ## break the code in 300 places, one at a time, and see which the tests notice (hours; resumes)
	$(BIN)/python -m pip install -q -c constraints.txt cosmic-ray pytest-cov
	$(BIN)/python tests/mutants/run.py --folder .cache/mutants

lint: .venv/ready-dev ## ruff (lint and format), mypy, which package may import which, spelling and wording
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy gr00t toolkit finetune data_prep simulation
	$(BIN)/lint-imports --no-cache
	git ls-files -co --exclude-standard -z | xargs -0 $(BIN)/codespell

bundle: ## wheels and hashes to install from without internet, into bundle/ (EXTRAS=slurm,serve GLIBC=2.28 PYTHON=...)
	$(PYTHON) scripts/bundle.py --extras "$(EXTRAS)" --glibc "$(GLIBC)"

docs: .venv/ready-dev ## build the documentation site into .cache/site; a warning is an error
	$(BIN)/python -m mkdocs build --strict

cluster: ## a throw-away SLURM cluster on this machine: two nodes with four (fake) a100 each
	@tests/cluster/up

cluster-down: ## end it
	@tests/cluster/down

format: .venv/ready-dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what demo and tests made, but not .venv
	rm -rf demo example .cache .pytest_cache .mypy_cache .ruff_cache

.venv/ready: constraints.txt pyproject.toml
	@scripts/setup.sh "$(PYTHON)" .

.venv/ready-dev: .venv/ready
	@scripts/setup.sh "$(PYTHON)" .[dev,sim]
