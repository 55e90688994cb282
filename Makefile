# Two commands for a fresh machine: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench soak wheel clean

# Built anew when a kernel changes, so that nobody tests yesterday's.
KERNELS := $(wildcard caq/kernels/*.[ch]) caq/kernels/build_ffi.py

$(VENV)/.app: setup.cfg pyproject.toml constraints.txt $(KERNELS)
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

# What a device gets: a wheel, tested in an environment with nothing else of ours in it.
WHEEL := build/wheel
DEVICE_TESTS := calibration context kernels search test_artifact.py test_conditional.py test_data.py test_engine.py \
  test_governor.py test_graph.py test_hostile.py test_memory.py test_native.py test_native_threads.py test_quant.py \
  test_record.py test_reference.py test_runtime.py test_scaling.py

wheel:
	rm -rf $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip wheel --quiet --no-deps -c constraints.txt -w $(WHEEL) .
	$(WHEEL)/venv/bin/python -m pip install --quiet -c constraints.txt $(WHEEL)/*-cp310-abi3-*.whl pytest hypothesis
	cp -r tests setup.cfg $(WHEEL)
	cd $(WHEEL) && venv/bin/python -m pytest -q $(addprefix tests/,$(DEVICE_TESTS))

bench: $(VENV)/.app
	$(BIN)/python -m benchmarks

# Compilers and emulators of the other CPUs that the kernels' tests run on; without them those tests are skipped.
CROSS := gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user gcc-arm-none-eabi

soak: $(VENV)/.dev wheel
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get install -y -qq $(CROSS) || echo "could not install $(CROSS): some tests will be skipped"; \
	else \
	  for tool in aarch64-linux-gnu-gcc arm-linux-gnueabihf-gcc qemu-aarch64 qemu-arm arm-none-eabi-gcc; do \
	    command -v $$tool >/dev/null || echo "no $$tool: tests that need it are skipped (Debian: $(CROSS))"; \
	  done; \
	fi
	CAQ_SOAK=1 $(BIN)/python -m pytest -m soak

clean:
	rm -rf $(VENV) demo build *.egg-info
