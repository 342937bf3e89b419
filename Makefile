# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs in .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
OUT ?= demo-out
PYTEST_OPTIONS ?=
# more than cores: a part of the time tests wait, for clocks, a browser, processes
JOBS ?= 3
TORCH_INDEX ?= $(if $(CPU),https://download.pytorch.org/whl/cpu)
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# whatever the shell says: without it pytest rewrites, and each process compiles, what the one before had compiled
export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo demo-finetune browser lint test test-all test-lowest test-latest dist docs site clean

help:
	@echo "make demo    the whole pipeline on the built-in corpus, results in $(OUT)/"
	@echo "make demo-finetune   the same, then the second pass: text tower and head together"
	@echo "make test    every promise once, in JOBS=$(JOBS) processes (GLSCL_REAL_DATA=DIR adds tests on real files)"
	@echo "make test-all   the same and the exhaustive tests: many crashes, many hostile files, real waiting for the disk"
	@echo "make browser   install Chromium, in which the tests open the page of glscl serve; without it they skip that"
	@echo "make lint    ruff, its formatting, and a type checker: no error in the product"
	@echo "make test-lowest   the same with the lowest versions that pyproject.toml admits, in $(VENV)-lowest; test-latest: the newest"
	@echo "make dist    wheel and source distribution in dist/, checked"
	@echo "make docs    write docs/cli.md from the commands"
	@echo "make site    the documentation as a site in build/site, any warning an error"
	@echo "… CPU=1      with the first of them: torch without CUDA, from PyTorch's own index (TORCH_INDEX=URL: from another)"
	@echo "make clean   remove the virtual environment and build left-overs"

$(VENV)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11"; exit 1; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV) && \
		"$(PYTHON)" -m pip install --quiet --target build/virtualenv virtualenv && \
		PYTHONPATH=build/virtualenv "$(PYTHON)" -m virtualenv --quiet $(VENV); }  # Debian's Python comes without ensurepip
	$(if $(TORCH_INDEX),$(VENV)/bin/python -m pip install --quiet --index-url "$(TORCH_INDEX)" torch torchvision)
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	@touch $@

demo: $(VENV)/.ready
	$(VENV)/bin/glscl demo --out $(OUT)

# what the page of `glscl serve` is tested with; needs the rights to install packages
browser:
	@command -v chromium > /dev/null || { apt-get update && apt-get install --yes --no-install-recommends chromium; }

demo-finetune: $(VENV)/.ready
	$(VENV)/bin/glscl demo --finetune --out $(OUT)

PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

test: $(VENV)/.ready
	$(PYTEST) -m "not exhaustive" $(PYTEST_OPTIONS)

# what exhaustive tests need besides: a tracker, a cluster, and what builds the site
$(VENV)/.all: pyproject.toml $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs,mlflow,ray]'
	@touch $@

test-all: $(VENV)/.all
	$(PYTEST) $(PYTEST_OPTIONS)

$(VENV)/.lint: pyproject.toml $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet --editable '.[lint]'
	@touch $@

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@mkdir -p build/types && ln -sfn ../.. build/types/glscl  # the rooms stand at the top level; their import name is `glscl`
	$(VENV)/bin/basedpyright --project pyproject.toml --pythonpath $(VENV)/bin/python

# uv resolves what pip cannot: the lowest version of everything that pyproject.toml names
build/uv/bin/uv:
	"$(PYTHON)" -m pip install --quiet --upgrade --target build/uv uv

test-lowest test-latest: test-%: build/uv/bin/uv
	PYTHONPATH=build/uv build/uv/bin/uv venv --quiet --clear --seed --python "$(PYTHON)" $(VENV)-$*
	build/uv/bin/uv pip install --quiet --python $(VENV)-$*/bin/python --upgrade \
		--resolution $(if $(filter lowest,$*),lowest-direct,highest) --editable '.[test]'
	build/uv/bin/uv pip freeze --python $(VENV)-$*/bin/python > build/versions-$*.txt
	OMP_NUM_THREADS=1 $(VENV)-$*/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not exhaustive" $(PYTEST_OPTIONS)

dist: $(VENV)/.ready
	rm -rf dist
	$(VENV)/bin/python -m pip install --quiet build twine
	$(VENV)/bin/python -m build --outdir dist
	$(VENV)/bin/python -m twine check --strict dist/*

docs: $(VENV)/.ready
	$(VENV)/bin/python docs/make_cli_page.py

$(VENV)/.site: pyproject.toml $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	@touch $@

site: $(VENV)/.site
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet --strict
	@echo "build/site/index.html"

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-latest build dist *.egg-info
