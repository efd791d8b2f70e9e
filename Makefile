# make demo | test | lint | clean. The first one installs into .venv; later ones start at once.
#
#   PYTHON=python3.12   the interpreter that .venv is made with (3.11 to 3.13)
#   FORCE=1             use another version of Python all the same
#   ARGS="..."          more words for the program: make demo ARGS="seed=1", make test ARGS="-k abl"

PYTHON ?= python3
FORCE ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q

.PHONY: help demo test lint clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,6s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed
	$(BIN)/python -m backdoor attack=badnets defense=abl $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests conf -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are younger than pyproject.toml once everything in it is installed.
$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@echo "Installing into $(VENV): about 6 GB with torch, which takes some minutes the first time."
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.made
	@echo "Installing into $(VENV): about 6 GB with torch, which takes some minutes the first time."
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v <= (3, 13) or "$(FORCE)" else \
	  "error: PYTHON=%s: expected Python 3.11 to 3.13, got %d.%d; " % (sys.executable, v[0], v[1]) + \
	  "name another with PYTHON=python3.12, or try this one with FORCE=1")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $(PYTHON) cannot make $(VENV): install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@touch $@
