# make demo: install, then the whole loop in the nano world (about 10 minutes on 2 quick cores, 4 GB).
# make test: install, then lint, types and tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo full serve lint types tests test soak clean

help:
	@echo "make demo   install, then annotate, train, verify and report in the nano world: runs/demo/report/report.html"
	@echo "make test   install, then lint, types and tests"
	@echo "make full   the demo with 3 seeds and controls: runs/full/report/report.html"
	@echo "make serve  serve the demo's models at http://127.0.0.1:8000/v1"
	@echo "make soak   the long versions of tests: more kills, thousands of requests, a real training (a quarter of an hour)"
	@echo "make clean  remove the virtual environment and caches; runs/ stays"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else "Python 3.11 is needed, found %d.%d; say make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m jobs.bootstrap jobs/recipes/nano/demo.toml

full: install
	$(BIN)/python -m jobs.bootstrap jobs/recipes/nano/full.toml

serve: install
	$(BIN)/python -m serve_apps fdm=runs/demo/fdm/model idm=runs/demo/idm/model

# The second command, in preview: sections of docstrings name only parameters that exist, and what is given back.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select DOC102,DOC202,DOC403 wm jobs serve_apps cluster
	$(BIN)/ruff format --check .
	$(BIN)/codespell wm jobs serve_apps cluster tests README.md CHANGELOG.md CONTRIBUTING.md

types: install
	$(BIN)/mypy --num-workers=2

# Much of the time one of three waits for Ray: two alone leave cores idle. tests/conftest.py says which file comes first.
tests: install
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

# One after the other: each takes minutes, and some load every core.
soak: install
	$(BIN)/python -m pytest -m soak -rP --override-ini=timeout=3600

test: lint types tests

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info build
