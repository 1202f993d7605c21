# make demo        two hosts, one lease, a take-over
# make test        the test suite
# make check-long  what takes longer: exhaustive worlds, many seeds, sanitizers, fuzzing
# make lint        style, types, imports, generated files
# make bench       figures, next to the raw device and the real sanlock

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/build.log

RUN = >$(LOG) 2>&1 || { cat $(LOG); exit 1; }

.PHONY: build demo test check-long bench lint clean

build: $(VENV)/.built

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name it: make PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# Everything from the package index, what the build needs included; again when pyproject changes.
$(VENV)/.installed: $(VENV)/.created pyproject.toml
	@echo "Installing into $(VENV) (the first time takes a minute) ..."
	@$(BIN)/python -m pip install -q -e '.[dev]' $(RUN)
	@touch $@

# The extension alone needs no package index.
$(VENV)/.built: $(VENV)/.installed $(wildcard csrc/*)
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e . $(RUN)
	@touch $@

demo: build
	@$(BIN)/paxoslease demo

# Most tests wait for time-outs of the real engine and of real peers most of their time.
test: build
	$(BIN)/pytest -q -n 4 --dist worksteal

check-long: build
	$(BIN)/pytest -q -m long --timeout 7200 -n 2 --dist worksteal
	HYPOTHESIS_PROFILE=fresh $(BIN)/pytest -q -n 4 --dist worksteal $$(grep -rl 'from hypothesis' tests --include='test_*.py')
	$(BIN)/python tools/check_c.py
	$(BIN)/python tools/fuzz.py --minutes 60

bench: build
	$(BIN)/python -m bench

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_aio.py --check
	$(BIN)/python tools/check_c.py --warnings
	$(BIN)/python tools/generate_cli_docs.py --check

clean:
	rm -rf $(VENV) build *.egg-info paxoslease/_aio*.so .mypy_cache .ruff_cache .pytest_cache
