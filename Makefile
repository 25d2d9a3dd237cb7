# make demo: environment, installation, the whole job on a phantom.  make test: environment, installation, all tests.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-fast soak check clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[demo,imaging,flower,export,dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/pflsynth demo --out demo --force

test: $(INSTALLED)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not soak"

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not soak and not slow"

soak: $(INSTALLED)
	$(BIN)/python -m pytest -n 3 -m soak

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo work build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
