"""Choose among given answers by their likelihood.

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
from memograft.serving.front import Documents
from memograft.serving.host import Host

__all__ = ["Choice", "choose", "logprobs_of"]


@dataclass(frozen=True)
class Choice:
    """The result of `Engine.choose`.

    Attributes:
        best: the option with the highest score; the first of equal ones.
        index: its index among the options.
        scores: of each option, in nats per token; see `memograft.serving.scoring`.
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
    """Score all options, in one batch if the engine's `max_batch` allows it.

    Args:
        engine: the engine.
        question: the question, without the options.
        options: the answers to choose from.
        documents: see `Request`.
        memory: see `Request`.
        processors: see `Request`; with an `Rtd`, its datastore affects the likelihood of each token.
        messages: turns before the question, such as worked examples (few shots).
        unknown: must be empty; a clear error is raised otherwise.

    Raises:
        SettingsError: there are fewer than two options, two are equal, or a setting is unknown.
        PromptTooLongError: an option does not fit after the prompt.
    """
    if unknown:
        raise SettingsError(
            f"`choose` takes `documents`, `memory`, `processors` and `messages`, got {sorted(unknown)}; it compares "
            "likelihoods: to use a datastore, pass processors=[Rtd(datastore)]"
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
    """(V,) The first distribution that a tap read, as a tensor that autograd accepts."""
    assert tap.first is not None, "the request was answered without a distribution"
    return tap.first.clone()
