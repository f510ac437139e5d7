"""The README and the docstrings, by the conformance suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance.readme import Readme
from llama_index.core import Settings


class TestReadme(Readme):
    root = Path(__file__).parents[1]
    package = "llama_index.llms.memograft"

    @pytest.fixture(autouse=True)
    def _settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("_llm", "_embed_model"):  # examples set them
            monkeypatch.setattr(Settings, name, None)

    def test_the_first_example_takes_twelve_lines(self) -> None:
        first = self.readme.partition("```python\n")[2].partition("```")[0]
        assert len([line for line in first.splitlines() if line]) <= 12
