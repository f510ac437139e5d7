# Two commands set everything up, each complete on a machine with only Python (3.11 or later) and make:
#   make demo    environment, installation, and the demo: a folder of text, answered from plainly and after memorizing
#   make test    the same, then every test

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check bench clean

demo: $(READY)
	$(BIN)/memograft demo --html demo.html

test: demo
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py tests/test_public_api.py

bench: $(READY)
	$(BIN)/memograft eval world

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf .venv runs demo.html .pytest_cache .mypy_cache .ruff_cache
