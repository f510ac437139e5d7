"""Choosing among given answers by how likely the model finds them.

score(o) = 1/|o| * sum_t log p(o_t | prompt, o_<t)     p after memory, rules and processors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from memograft.decoding.tap import Tap
from memograft.documents import as_documents
from memograft.errors import SettingsError
from memograft.memory.base import Memory
from memograft.memory.handle import MemoryHandle
from memograft.model.backbone import Backbone
from memograft.prompt.builder import PromptBuilder
from memograft.prompt.continuation import continuation
from memograft.prompt.messages import Message
from memograft.request import Request
from memograft.serving.host import Host
from memograft.serving.work import Documents

__all__ = ["Choice", "choose", "logprobs_of"]


@dataclass(frozen=True)
class Choice:
    """What `Engine.choose` found.

    Attributes:
        best: the option with the highest score, the first of equals.
        index: its place among the options.
        scores: one for each option, in nats for each of its tokens; see `memograft.serving.scoring`.
    """

    best: str
    index: int
    scores: tuple[float, ...]


def choose(
    engine: Host,
    question: str,
    options: Sequence[str],
    documents: Documents = (),
    *,
    memory: Memory | MemoryHandle | None = None,
    processors: Sequence[object] = (),
    messages: Sequence[Message] = (),
    **unknown: object,
) -> Choice:
    """Score every option, all of them in one batch (of the engine's `max_batch` at most).

    Args:
        engine: who has the model.
        question: what is asked, without the options.
        options: the answers to choose from.
        documents: as of a request; so are `memory` and `processors`.
        memory: see `Request`.
        processors: see `Request`; with an `Rtd` among them a datastore has a say in each token's likelihood.
        messages: turns before the question, such as worked examples (few shots).
        unknown: nothing may be here.

    Raises:
        SettingsError: there is nothing to choose from, or an unknown setting.
        PromptTooLongError: an option does not fit behind the prompt.
    """
    if unknown:
        raise SettingsError(
            f"`choose` takes `documents`, `memory`, `processors` and `messages`, got {sorted(unknown)}; it judges by "
            "likelihood: for a datastore to have its say pass processors=[Rtd(datastore)]"
        )
    options = [options] if isinstance(options, str) else list(options)
    if len(set(options)) != len(options) or len(options) < 2:
        raise SettingsError(f"`options` must be at least 2 different answers, got {options!r}")
    docs = as_documents(documents)
    request = Request(question, documents=docs, memory=memory, processors=tuple(processors))
    request = replace(request, question=None, messages=(*messages, *request.messages))

    def encoded(_: Backbone, builder: PromptBuilder) -> list[tuple[int, ...]]:
        return [continuation(builder, request.messages, docs, option)[1] for option in options]

    taps = engine.tapped([request] * len(options), [Tap(ids) for ids in engine.with_model(encoded)])
    scores = [sum(tap.chances) / len(tap.chances) for tap in taps]
    best = max(range(len(options)), key=scores.__getitem__)
    return Choice(options[best], best, tuple(scores))


def logprobs_of(tap: Tap) -> Tensor:
    """(V,) the first distribution that a tap has read, as a tensor that autograd takes too."""
    assert tap.first is not None, "the request was answered without a distribution"
    return tap.first.clone()
