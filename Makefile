# Two commands for a fresh machine: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench soak clean

$(VENV)/.app: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[train,sim,cli]'
	touch $@

$(VENV)/.dev: $(VENV)/.app
	$(PIP) -e '.[train,sim,cli,dev]'
	touch $@

demo: $(VENV)/.app
	$(BIN)/caq demo --out demo

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check
	$(BIN)/python -m pytest --cov --cov-config=.coveragerc

bench: $(VENV)/.app
	$(BIN)/python -m benchmarks

soak: $(VENV)/.dev
	CAQ_SOAK=1 $(BIN)/python -m pytest -m soak

clean:
	rm -rf $(VENV) demo build *.egg-info
