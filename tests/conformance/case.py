"""`Case`: the base class of the suite's classes, with the fixtures of the tested front."""

from __future__ import annotations

from typing import ClassVar

import pytest

from conformance.fixtures import Seen
from conformance.front import Front
from memograft import Engine

__all__ = ["Case"]


class Case:
    """Tests of one front, which the subclass names in `front`."""

    front: ClassVar[type[Front]]

    @pytest.fixture
    def chat(self, tiny: Engine) -> Front:
        """The bundled model, which memorizes its documents."""
        return self.front.over(tiny, model="tiny", max_tokens=32)

    @pytest.fixture
    def plain(self, tiny: Engine) -> Front:
        """The bundled model without memorizing."""
        return self.front.over(tiny, model="tiny", memory=None, max_tokens=32)

    @pytest.fixture
    def wild(self, random_engine: Engine) -> Front:
        """A model with random weights, which generates until `max_tokens`."""
        return self.front.over(random_engine, model="random", memory=None, max_tokens=12)

    @pytest.fixture
    def seen(self, tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> Seen:
        """Records the requests to the bundled model."""
        return Seen(tiny, monkeypatch)

    @pytest.fixture
    def seen_calling(self, calling: Engine, monkeypatch: pytest.MonkeyPatch) -> Seen:
        """Records the requests to the model that calls tools."""
        return Seen(calling, monkeypatch)
