"""Another kind of memory, defined in this file: keys and values of a text in front of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from memograft import Document, Engine, FastMem, Memory, Request, Sampling
from memograft.errors import PromptTooLongError, SettingsError
from memograft.memory.base import Brought, Model, Task, Wanted
from memograft.memory.report import MemoryReport
from memograft.model.kv import Prefill, Segment
from memograft.model.prefill import prefill_segment
from memograft.prompt.builder import PromptBuilder
from test_engine import FACTS, ask

LORA = FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)


@dataclass(frozen=True)
class FixedPrefix(Memory):
    """Puts the keys and values of a text in front of every prompt; documents are not in the prompt."""

    text: str = "once"

    kind: ClassVar[str] = "fixed-prefix"

    def shown(self, documents: tuple[Document, ...]) -> tuple[Document, ...]:
        return ()

    def columns(self, prompts: PromptBuilder, documents: tuple[Document, ...]) -> int:
        return len(prompts.plain(self.text))

    @classmethod
    def before(cls, model: Model, rows: Sequence[Wanted]) -> list[Segment | None]:
        made = [prefill_segment(model.backbone, model.prompts.plain(row.memory.text)) for row in rows]
        return [Segment((), segment.kv_cache) for segment in made]

    @classmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:
        return [Brought(report=MemoryReport(reason=f"nothing is trained for {row.memory.text!r}")) for row in rows]


def in_front(engine: Engine, request: Request, text: str) -> tuple[int, ...]:
    """The tokens of `model.generate` with the text's tokens before the prompt's."""
    ids = [*engine._prompts.plain(text), *engine._prompts.build(request.messages).ids]
    with torch.no_grad():
        out = engine.model.generate(torch.tensor([ids]), max_new_tokens=request.sampling.max_new_tokens)
    said = out[0, len(ids) :].tolist()
    eos = engine.model.generation_config.eos_token_id
    return tuple(said[:-1] if said and said[-1] == eos else said)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "opt"])
def test_it_says_what_the_model_says_behind_the_text(make_engine: Any, family: str) -> None:
    engine = make_engine(family)
    for text in ("once", "The capital of France is Paris."):
        request = ask(memory=FixedPrefix(text), documents=FACTS)
        answer = engine.answer(request)
        assert answer.token_ids == in_front(engine, request, text)
        assert (answer.documents, answer.usage.cached_tokens) == ((), 0)
        assert answer.memory is not None
        assert answer.memory.reason == f"nothing is trained for {text!r}"


def test_it_shares_a_batch_with_every_other_memory(engine: Engine) -> None:
    handle = engine.memorize(FACTS, LORA)
    requests = [
        ask(memory=FixedPrefix("once")),
        ask(memory=FixedPrefix("The capital of France is Paris.")),
        ask(documents=FACTS, memory=LORA),
        ask(memory=handle),
        ask(documents=FACTS[:1]),
    ]
    alone = [engine.answer(request).token_ids for request in requests]
    assert [answer.token_ids for answer in engine.answer_batch(requests)] == alone
    assert len(set(alone[:2])) == 2


def test_it_is_kept_and_streamed(engine: Engine) -> None:
    handle = engine.memorize(FACTS, FixedPrefix("once"))
    assert handle.settings == FixedPrefix("once")
    assert handle.id != engine.memorize(FACTS, FixedPrefix("twice")).id
    answer = engine.answer(ask(memory=handle))
    assert answer.token_ids == engine.answer(ask(memory=FixedPrefix("once"))).token_ids
    stream = engine.stream(ask(memory=FixedPrefix("once")))
    assert "".join(stream) == stream.answer.text == answer.text


def test_what_stands_in_front_takes_room(make_engine: Any) -> None:
    """Prompt, answer and the columns in front share the window."""
    request = ask(memory=FixedPrefix("once upon a time"))
    bare = make_engine().answer(replace(request, memory=None)).usage.prompt_tokens
    columns = request.memory.columns(make_engine()._prompts, ())
    assert columns > 3
    assert make_engine(max_length=bare + columns + 2).answer(request).usage.completion_tokens == 2
    with pytest.raises(PromptTooLongError):
        make_engine(max_length=bare + columns).answer(request)


def test_settings_go_through_json() -> None:
    for memory in (FixedPrefix("x"), LORA, FastMem(), FastMem.paper()):
        assert Memory.from_json(memory.to_json()) == memory
    with pytest.raises(SettingsError, match=r"`kind` must be one of .*fastmem, .*fixed-prefix.*, got 'none'"):
        Memory.from_json({"kind": "none"})
    with pytest.raises(SettingsError, match="`fixed-prefix` has no such setting"):
        Memory.from_json({"kind": "fixed-prefix", "words": 3})


def test_what_is_no_memory_is_refused(engine: Engine) -> None:
    with pytest.raises(SettingsError, match=r"`memory` must be FastMem\(...\), a handle of Engine.memorize, or None"):
        engine.answer(replace(ask(sampling=Sampling(1)), memory="fastmem"))  # type: ignore[arg-type]
