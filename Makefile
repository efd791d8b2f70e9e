# make demo | test | lint | clean | constraints. The first one installs into .venv; later ones start at once.
#
#   PYTHON=python3.12   the interpreter that .venv is made with (3.11 to 3.13)
#   FORCE=1             use another version of Python all the same
#   NEWEST=1            install the newest releases instead of those in constraints.txt, which the tests passed with
#   ARGS="..."          more words for the program: make demo ARGS="seed=1", make test ARGS="-k abl"

PYTHON ?= python3
FORCE ?=
NEWEST ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q \
  $(if $(NEWEST),--upgrade --upgrade-strategy eager,-c constraints.txt)
# What is installed follows these files, and each of the two ways has stamps of its own.
NEEDS := pyproject.toml $(if $(NEWEST),,constraints.txt)
WAY := $(if $(NEWEST),-newest)

.PHONY: help demo test lint install constraints clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,7s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed$(WAY)
	$(BIN)/python -m backdoor attack=badnets defense=abl $(ARGS)

test: install
	$(BIN)/python -m pytest $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed-dev$(WAY)

# Renewed once the whole suite passes with the newest releases. torch itself asks for its own CUDA packages, which differ
# by platform; "+cpu" is no part of a release.
constraints:
	$(MAKE) test NEWEST=1
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --all --exclude-editable \
	  | sed -nE 's/^([A-Za-z0-9._-]+==[A-Za-z0-9.]+)(\+.*)?$$/\1/p' \
	  | grep -vE '^(pip|wheel|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)=='; } > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests conf -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is younger than what it needs once all of that is installed; those of the other way go first.
$(VENV)/.installed$(WAY): $(NEEDS) | $(VENV)/.made
	$(call into_venv,.,$@)

$(VENV)/.installed-dev$(WAY): $(NEEDS) | $(VENV)/.made
	$(call into_venv,'.[dev]',$(VENV)/.installed$(WAY) $@)

define into_venv
	@echo "Installing into $(VENV): about 6 GB with torch, which takes some minutes the first time."
	@rm -f $(VENV)/.installed*
	@$(PIP) -e $1
	@touch $2
endef

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v <= (3, 13) or "$(FORCE)" else \
	  "error: PYTHON=%s: expected Python 3.11 to 3.13, got %d.%d; " % (sys.executable, v[0], v[1]) + \
	  "name another with PYTHON=python3.12, or try this one with FORCE=1")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $(PYTHON) cannot make $(VENV): install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@touch $@
