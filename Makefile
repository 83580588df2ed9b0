# Everything below needs only Python 3.10+ and make; each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# no: install by versions alone
HASHES ?= yes
# the oldest torch that setup.py admits, with the torchvision that belongs to it
OLDEST := .venv-oldest
OLDEST_TORCH := 2.6.0
OLDEST_TORCHVISION := 0.21.0
# processes that share out the tests; half of their time is waiting for what they have started
WORKERS ?= 4
# programs that tests start: a SLURM cluster with its database, a browser, and a compiler for torch.compile
PACKAGES := slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core chromium chromium-driver g++

.PHONY: setup demo test test-oldest lint docs package sbom audit clean help packages

help:
	@echo "make setup   a virtual environment in .venv with the tested versions; HASHES=no for builds of PyTorch from elsewhere"
	@echo "make demo    the main job end to end on synthetic images, on the GPUs or the CPU cores that are there"
	@echo "make test    all tests (and lint)"
	@echo "make test-oldest  unit, parity and distributed tests with the oldest torch that is supported, in .venv-oldest"
	@echo "make lint    ruff, mypy, and the direction of imports"
	@echo "make docs    the documentation as a site, in site/VERSION"
	@echo "make package the wheel and the sdist, in dist/"
	@echo "make sbom    sbom.json, the bill of materials of what is installed"
	@echo "make audit ADVISORIES=FILE   what is installed, against a file of advisories"
	@echo "make clean   remove runs/ and caches; .venv stays"

setup: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed; call make PYTHON=/path/to/python3.x"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && apt-get install -q -y --no-install-recommends python3-venv && $(PYTHON) -m venv $(VENV); \
	  else echo "Python cannot make virtual environments: sudo apt-get install python3-venv"; exit 1; fi; }

$(STAMP): setup.py pyproject.toml constraints.txt $(wildcard requirements/*.txt) tools/setup.sh $(BIN)/python
	@echo "Installing the tested versions into $(VENV) ..."
	@sh tools/setup.sh $(BIN)/python $(HASHES)
	@touch $@

demo: $(STAMP)
	@$(BIN)/python tools/demo.py

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo >/dev/null || $(BIN)/lint-imports --no-logo

test: lint packages
	@$(BIN)/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

test-oldest: $(OLDEST)/.installed-oldest
	@$(OLDEST)/bin/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder tests/unit tests/parity tests/distributed --ignore=tests/unit/test_supply_chain.py

$(OLDEST)/.installed-oldest: setup.py constraints.txt requirements/build.txt Makefile
	@$(MAKE) --no-print-directory VENV=$(OLDEST) $(OLDEST)/bin/python
	@sed 's/^torch==.*/torch==$(OLDEST_TORCH)/; s/^torchvision==.*/torchvision==$(OLDEST_TORCHVISION)/' constraints.txt > $(OLDEST)/constraints.txt
	@echo "Installing torch $(OLDEST_TORCH) and the tested versions of the rest into $(OLDEST) (several GB, a few minutes) ..."
	@$(OLDEST)/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/build.txt
	@$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt -e '.[tests]'
	@touch $@

packages:
	@dpkg-query -W $(PACKAGES) >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing what tests start: $(PACKAGES)"; \
	    apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(PACKAGES) >/dev/null \
	      || echo "Not all of it could be installed; the tests that need it say so and are skipped."; \
	  else echo "Tests of SLURM and of the app are skipped where these are not installed: sudo apt-get install $(PACKAGES)"; fi; }

docs: $(STAMP)
	@version=$$($(BIN)/python -c 'import m2i2; print(m2i2.__version__)') \
	  && $(BIN)/mkdocs build --quiet --strict --site-dir site/$$version && echo "Open site/$$version/index.html"

package: $(STAMP)
	@rm -rf build dist
	@$(BIN)/python -m build --no-isolation

sbom: $(STAMP)
	@$(BIN)/python tools/supply_chain.py sbom sbom.json

audit: $(STAMP)
	@$(BIN)/python tools/supply_chain.py audit $(ADVISORIES)

clean:
	rm -rf runs build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
