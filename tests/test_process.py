"""Objects of one process raise a clear error when they are pickled."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from memograft import Datastore, Engine, VectorStore


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_belongs_to_one_process_cannot_be_sent_to_another(send: Callable[[Any], Any], tiny: Engine) -> None:
    with VectorStore() as store, Datastore.build(tiny, [("Who?", "Ada.")], progress=False) as datastore:
        remedies = {tiny: "Engine.from_pretrained", store: "VectorStore.open", datastore: "Datastore.open"}
        for own, remedy in remedies.items():
            with pytest.raises(TypeError, match=rf"{type(own).__name__} cannot be pickled or copied.*{remedy}\("):
                send(own)
        with pytest.raises(TypeError, match="Engine cannot be pickled"):
            pickle.dumps(tiny.answer)  # as multiprocessing does
    assert tiny.answer("What is the capital of France?").text
