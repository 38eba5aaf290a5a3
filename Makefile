# make demo: install, then the whole loop in the nano world (about 10 minutes on 2 quick cores, 4 GB).
# make test: install, then lint, types and tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo full serve schema lint types tests docs docs-serve test clean

help:
	@echo "make demo   install, then annotate, train, verify and report in the nano world: runs/demo/report/report.html"
	@echo "make test   install, then lint, types and tests"
	@echo "make full   the demo with 3 seeds and controls: runs/full/report/report.html"
	@echo "make serve  serve the demo's models at http://127.0.0.1:8000/v1"
	@echo "make schema ask the server 2,000 requests made up from its OpenAPI schema"
	@echo "make docs   build the documentation: build/docs/index.html; make docs-serve shows it while it is written"
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

schema: install
	WM_SCHEMA_CASES=2000 $(BIN)/python -m pytest -q -rP tests/serve_apps/test_schema.py

# The second command, in preview: sections of docstrings name only parameters that exist, and what is given back.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select DOC102,DOC202,DOC403 wm jobs serve_apps cluster
	$(BIN)/ruff format --check .
	$(BIN)/codespell wm jobs serve_apps cluster docs tests README.md CHANGELOG.md CONTRIBUTING.md

types: install
	$(BIN)/mypy

tests: install
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# Strict: a link, an anchor or a page in no menu that is wrong fails the build (with --quiet none would).
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f docs/mkdocs.yml

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve -f docs/mkdocs.yml

# Without docs: tests/docs builds the same pages, where all is imported already, and lets no warning pass.
test: lint types tests

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info build
