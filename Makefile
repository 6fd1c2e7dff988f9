# Everything from a fresh clone: `make demo`, `make test`. Both create .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two PyTorch threads on shared cores spin against each other (up to 38x slower updates): one thread per process.
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test lint benchmark clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/rollsight study FrozenLake-v1 --minutes 3

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/scoring.py

clean:
	rm -rf $(VENV)
