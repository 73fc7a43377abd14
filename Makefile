# Two commands set up everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
PYTEST = $(RUN) -m pytest -n auto --dist worksteal

.PHONY: quickstart test test-all check clean

quickstart: $(VENV)/package  ## ACE on a small task with the offline model: score before and after, the playbook
	$(RUN) examples/quickstart.py

test: $(VENV)/developer  ## the test suite without its slow part
	$(PYTEST) -m "not slow"

test-all: $(VENV)/developer  ## what `make test` leaves out: the slow tests, and more examples for the property tests
	HYPOTHESIS_PROFILE=thorough $(PYTEST) -m "slow or hypothesis"

check: $(VENV)/developer  ## linters, types, import contracts
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

$(VENV)/package: pyproject.toml
	@echo "1 of 2: a Python environment of its own, in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@echo "2 of 2: dspy_ace, and what it needs: DSPy and scikit-learn. The first time about 200 MB are downloaded."
	$(RUN) -m pip install --no-compile --disable-pip-version-check -e .
	@touch $@

$(VENV)/developer: $(VENV)/package
	@echo "Installing the developers' tools into $(VENV)"
	$(RUN) -m pip install --quiet -e '.[dev]'
	$(RUN) -m pip install --quiet --no-deps axe-playwright-python  # for its axe.min.js; the tests drive Chromium themselves
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
