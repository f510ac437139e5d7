"""`Case`: what the classes of the suite have in common, the front that is tested."""

from __future__ import annotations

from typing import ClassVar

import pytest

from conformance.fixtures import Seen
from conformance.front import Front
from memograft import Engine

__all__ = ["Case"]


class Case:
    """Tests of the front that a subclass names."""

    front: ClassVar[type[Front]]

    @pytest.fixture
    def chat(self, tiny: Engine) -> Front:
        """The bundled model, memorizing."""
        return self.front.over(tiny, model="tiny", max_tokens=32)

    @pytest.fixture
    def plain(self, tiny: Engine) -> Front:
        """It, answering plainly."""
        return self.front.over(tiny, model="tiny", memory=None, max_tokens=32)

    @pytest.fixture
    def wild(self, random_engine: Engine) -> Front:
        """A random model, which says nonsense at length."""
        return self.front.over(random_engine, model="random", memory=None, max_tokens=12)

    @pytest.fixture
    def seen(self, tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> Seen:
        """What the bundled model is asked."""
        return Seen(tiny, monkeypatch)

    @pytest.fixture
    def seen_calling(self, calling: Engine, monkeypatch: pytest.MonkeyPatch) -> Seen:
        """What the model that calls tools is asked."""
        return Seen(calling, monkeypatch)
