# Two commands do everything on a fresh machine with Python >= 3.11: make book, make test.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
SUITE  ?= attention
PORT   ?= 8000
BRANCH ?= main

NBVAL  := --nbval-lax --nbval-current-env --nbval-cell-timeout=120 \
          --nbval-sanitize-with=tests/nbval_sanitize.cfg

.DEFAULT_GOAL := help
.PHONY: help book test lint execute bench serve browser clean

help:  ## list the targets
	@grep -hE '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Linear Time needs Python >= 3.11; say which: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

book: $(READY)  ## execute what changed and write _build/html (OFFLINE=1, REPOSITORY=url)
	$(BIN)/python book/_tools/build.py $(if $(OFFLINE),--offline) $(if $(REPOSITORY),--repository $(REPOSITORY) --branch $(BRANCH))

test: $(READY) lint  ## ruff, the unit tests, every notebook
	$(BIN)/pytest -m "not gpu and not browser" -n 2 --dist loadfile $(NBVAL) tests notebooks

lint: $(READY)  ## ruff over code and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

execute: $(READY)  ## run the notebooks in place and keep their outputs
	$(BIN)/python book/_tools/execute.py notebooks/*.ipynb

bench: $(READY)  ## measure a record on this machine (SUITE=attention)
	$(BIN)/python -m ssmlib.bench $(SUITE)

browser: $(READY)  ## read the built book in headless Chromium (make book first)
	$(BIN)/pytest -m browser tests/browser

serve: $(READY)  ## the built book at http://127.0.0.1:8000 (PORT=8000)
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

clean:  ## remove what was built, keep the environment
	rm -rf _build book/_generated book/api book/_static/vendor dist
