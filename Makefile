# make demo: set up, and mine an invented corpus.   make test: set up, and run the tests.
PYTHON ?= python3.11
VENV := .venv
export HF_HUB_OFFLINE := 1

.PHONY: demo test lint slow bench clean

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh jobs/demo.sh

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

slow: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m slow

bench: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/mining.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) work
