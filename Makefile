# Everything a newcomer needs: `make demo` and `make test` set up the rest themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests start processes of their own; two cores are shared fairly when each uses one thread.
JOBS ?= 2

.PHONY: demo demo-full test test-slow check format lint types bench lock clean

demo: $(VENV)/.ready
	$(BIN)/penchant demo

# About a quarter of an hour on two cores; goes on from what `make demo` left.
demo-full: $(VENV)/.ready
	$(BIN)/penchant demo full=true

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

check: format lint types test

format: $(VENV)/.ready
	$(BIN)/ruff format --check src tests

lint: $(VENV)/.ready
	$(BIN)/ruff check src tests

types: $(VENV)/.ready
	$(BIN)/mypy

# Over an hour on two idle cores, resumable; BENCH="--cases a-bf16 --runs 1" takes minutes.
bench: $(VENV)/.ready
	$(BIN)/python bench/against_trl.py $(BENCH)

lock: $(VENV)/.ready
	$(BIN)/python -m pip freeze --exclude-editable | sed "s/+cpu//" > requirements.lock

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) demo runs .pytest_cache .mypy_cache .ruff_cache
