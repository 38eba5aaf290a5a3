# make demo: install, then the whole loop in the nano world (4 to 5 minutes on 2 cores, 3 GB).
# make test: install, then lint, types and tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Which build of torch: cpu; auto: what the GPU's driver takes; empty: the usual index's, on Linux with several GB of CUDA.
TORCH_BACKEND ?= cpu

export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo full serve lint types tests docs docs-serve test soak clean

help:
	@echo "make demo   install, then annotate, train, verify and report in the nano world: runs/demo/report/report.html"
	@echo "make test   install, then lint, types and tests"
	@echo "make full   the demo with 3 seeds and controls: runs/full/report/report.html"
	@echo "make serve  serve the demo's models, or those of the package before it, at http://127.0.0.1:8000/v1"
	@echo "make soak   the long versions of tests: more kills, thousands of requests, real trainings (half an hour)"
	@echo "make docs   build the documentation: build/docs/index.html; make docs-serve shows it while it is written"
	@echo "make install TORCH_BACKEND=auto   the install alone, with torch for this machine's GPU"
	@echo "make clean  remove the virtual environment and caches; runs/ stays"

install: $(VENV)/.installed

# .installed holds the folder it was made in: a checkout that was moved has scripts that lead to the old one.
# .installing is there while pip works: an install that was killed is made anew, from pip's cache.
MOVED := $(shell [ -s $(VENV)/.installed ] && [ "$$(cat $(VENV)/.installed)" != "$$(pwd -P)" ] && echo moved)
GOAL := $(or $(firstword $(MAKECMDGOALS)),install)
.PHONY: moved

$(VENV)/.installed: pyproject.toml constraints.txt $(MOVED)
	@command -v "$(PYTHON)" >/dev/null \
		|| { echo "error: no Python 3.11 at PYTHON = '$(PYTHON)'; say make $(GOAL) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else "error: Python 3.11 is needed, $(PYTHON) is %d.%d; say make $(GOAL) PYTHON=/path/to/python3.11" % v)'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "error: $(PYTHON) has no venv or no pip; install them (Debian, Ubuntu: apt install python3.11-venv)" >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@if [ -n "$(MOVED)" ] || [ -e $(VENV)/.installing ]; then \
		echo "$(VENV) is made anew: $(if $(MOVED),the checkout was moved,the last install did not finish)"; rm -rf $(VENV); \
	fi
	@"$(PYTHON)" -m venv $(VENV) || { echo "error: $(VENV) could not be made; the reason is above" >&2; exit 1; }
	@# A small package first, with few tries: a proxy that does not answer is reported within a minute.
	@$(PIP) download --quiet --no-deps --timeout 10 --retries 1 --dest $(VENV)/.reach 'setuptools>=77' >$(VENV)/.reach.log 2>&1 \
		|| { tail -n 1 $(VENV)/.reach.log; echo "error: pip does not reach its package index; check the network, https_proxy and PIP_INDEX_URL" >&2; exit 1; }
	@rm -rf $(VENV)/.reach $(VENV)/.reach.log
	@touch $(VENV)/.installing && rm -f $@
	@# uv knows PyTorch's own indexes by name. Where they cannot be reached, the next step takes torch from the usual one.
	@[ -z "$(TORCH_BACKEND)" ] || { \
		$(PIP) install --quiet -c constraints.txt uv && UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=1 $(BIN)/uv pip install --quiet \
			--python $(BIN)/python --torch-backend=$(TORCH_BACKEND) --no-deps "$$(grep '^torch==' constraints.txt)"; \
	} >$(VENV)/.torch.log 2>&1 || { tail -n 1 $(VENV)/.torch.log; \
		echo "PyTorch's own index cannot be reached: pip takes torch from its usual one, on Linux with several GB of CUDA"; }
	@rm -f $(VENV)/.torch.log
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]' \
		|| { rm -f $(VENV)/.installing; echo "error: the install did not finish, pip's reason is above; the same command resumes" >&2; exit 1; }
	@rm -f $(VENV)/.installing
	@pwd -P > $@

demo: install
	$(BIN)/python -m jobs.bootstrap jobs/recipes/nano/demo.toml

full: install
	$(BIN)/python -m jobs.bootstrap jobs/recipes/nano/full.toml

# The demo's own models once they are trained, those that come with the package before.
served = $(1)=$(if $(wildcard runs/demo/fdm/run.json),runs/demo/$(1)/model,nano:$(1))

serve: install
	$(BIN)/python -m serve_apps $(call served,fdm) $(call served,idm)

# The second command, in preview: sections of docstrings name only parameters that exist, and what is given back.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select DOC102,DOC202,DOC403 wm jobs serve_apps cluster
	$(BIN)/ruff format --check .
	$(BIN)/codespell wm jobs serve_apps cluster docs tests README.md CHANGELOG.md CONTRIBUTING.md

types: install
	$(BIN)/mypy --num-workers=2

# Much of the time one of three waits for Ray: two alone leave cores idle. tests/conftest.py says which file comes first.
tests: install
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

# One after the other: each takes minutes, and some load every core.
soak: install
	$(BIN)/python -m pytest -m soak -rP --override-ini=timeout=3600

# Strict: a link, an anchor or a page in no menu that is wrong fails the build (with --quiet none would).
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f docs/mkdocs.yml

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve -f docs/mkdocs.yml

# Without docs: tests/docs builds the same pages, where all is imported already, and lets no warning pass.
test: lint types tests

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info build
