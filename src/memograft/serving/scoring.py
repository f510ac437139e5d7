"""Choosing among given answers: by how likely the model finds them, by a datastore's entries, or by both.

    likelihood    score(o) = 1/|o| * sum_t log p(o_t | prompt, o_<t)     p after memory, rules and processors
    rtd           score(o) = mean over rotations of log r(label of o)    r of `rtd/formula.py`, first token
    both          the sum of the two, each as log-probabilities over the options

For "rtd" the options stand in the prompt behind labels, once per rotation ("option cycling"), so that no label is
favoured; `rotations` makes the examples of a datastore in the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from memograft.decoding.batch_processor import BatchProcessor
from memograft.decoding.tap import Tap
from memograft.documents import as_documents
from memograft.errors import SettingsError
from memograft.memory.base import Memory
from memograft.memory.handle import MemoryHandle
from memograft.prompt.builder import PromptBuilder
from memograft.prompt.continuation import continuation
from memograft.prompt.messages import Message
from memograft.request import Request
from memograft.serving.host import Host
from memograft.serving.work import Documents

__all__ = ["Choice", "choose", "logprobs_of", "rotations"]

_LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choice:
    """What `Engine.choose` found.

    Attributes:
        best: the option with the highest score, the first of equals.
        index: its place among the options.
        scores: one for each option; see `memograft.serving.scoring`.
    """

    best: str
    index: int
    scores: tuple[float, ...]


def rotations(question: str, options: Sequence[str], answer: str) -> list[tuple[str, str]]:
    """(prompt, label) of a multiple-choice question, once per rotation of its options: examples for a datastore."""
    if answer not in options:
        raise SettingsError(f"`answer` must be one of the options, got {answer!r}; the options are {list(options)!r}")
    right = list(options).index(answer)
    return [
        (prompt, _LABELS[(right - turn) % len(options)]) for turn, prompt in enumerate(_listings(question, options))
    ]


def choose(
    engine: Host,
    question: str,
    options: Sequence[str],
    documents: Documents = (),
    *,
    memory: Memory | MemoryHandle | None = None,
    processors: Sequence[object] = (),
    messages: Sequence[Message] = (),
    by: Literal["likelihood", "rtd", "both"] = "likelihood",
) -> Choice:
    """Score every option, all of them in one batch (of the engine's `max_batch` at most).

    Args:
        engine: who has the model.
        question: what is asked, without the options.
        options: the answers to choose from.
        documents: as of a request; so are `memory` and `processors`.
        memory: see `Request`.
        processors: see `Request`; with "rtd" and "both" an `Rtd` is among them.
        messages: turns before the question, such as worked examples (few shots).
        by: "likelihood" of the option's tokens, divided by their number; "rtd", the datastore's entries alone; "both".

    Raises:
        SettingsError: there is nothing to choose from, or no `Rtd`, or an unknown `by`.
        PromptTooLongError: an option does not fit behind the prompt.
    """
    options = [options] if isinstance(options, str) else list(options)
    if len(set(options)) != len(options) or not 1 < len(options) <= len(_LABELS):
        raise SettingsError(f"`options` must be 2 to {len(_LABELS)} different answers, got {options!r}")
    if by not in ("likelihood", "rtd", "both"):
        raise SettingsError(f'`by` must be "likelihood", "rtd" or "both", got {by!r}')
    request = Request(question, documents=as_documents(documents), memory=memory, processors=tuple(processors))
    request = replace(request, question=None, messages=(*messages, *request.messages))
    judges: dict[str, Callable[..., Tensor]] = {"likelihood": _likelihood, "rtd": _by_datastore}
    scores = [judge(engine, request, options) for name, judge in judges.items() if by in (name, "both")]
    total = scores[0] if len(scores) == 1 else torch.stack([s.log_softmax(-1) for s in scores]).sum(0)
    best = int(total.argmax())
    return Choice(options[best], best, tuple(total.tolist()))


def logprobs_of(tap: Tap) -> Tensor:
    """(V,) the first distribution that a tap has read, as a tensor that autograd takes too."""
    assert tap.first is not None, "the request was answered without a distribution"
    return tap.first.clone()


def _likelihood(engine: Host, request: Request, options: Sequence[str]) -> Tensor:
    """(O,) mean log-probability of each option's tokens."""
    tokens = _tokens(engine, request, options)
    taps = engine.tapped([request] * len(options), [Tap(ids) for ids in tokens])
    return torch.tensor([sum(tap.chances) / len(tap.chances) for tap in taps], dtype=torch.float64)


def _by_datastore(engine: Host, request: Request, options: Sequence[str]) -> Tensor:
    """(O,) mean over the rotations of log r of each option's label."""
    steering = next((p for p in request.processors if isinstance(p, BatchProcessor)), None)
    if steering is None:
        raise SettingsError(
            '`by="rtd"` needs an Rtd among the `processors`, got none; pass processors=[Rtd(datastore)]'
        )
    count, (*before, last) = len(options), request.messages
    asked = [
        replace(request, messages=(*before, {**last, "content": listed}), processors=(steering.alone(),))
        for listed in _listings(str(last["content"]), options)
    ]
    labels = [ids[0] for ids in _tokens(engine, asked[0], _LABELS[:count])]
    if len(set(labels)) < count:
        raise SettingsError("the tokenizer has no token of its own for each label; choose by likelihood instead")
    taps = engine.tapped(asked, [Tap() for _ in asked])
    found = torch.stack([logprobs_of(tap)[labels] for tap in taps]).double()  # (rotation, label)
    return torch.stack([found[turn].roll(turn) for turn in range(count)]).mean(0)


def _tokens(engine: Host, request: Request, answers: Sequence[str]) -> list[tuple[int, ...]]:
    def encoded(_: object, builder: PromptBuilder) -> list[tuple[int, ...]]:
        return [continuation(builder, request.messages, as_documents(request.documents), a)[1] for a in answers]

    return engine.with_model(encoded)


def _listings(question: str, options: Sequence[str]) -> list[str]:
    """The question with its options behind labels, each rotation one further: at turn t option o has label o - t."""
    turned = [[*options[turn:], *options[:turn]] for turn in range(len(options))]
    lines = [[f"{label}. {option}" for label, option in zip(_LABELS, order, strict=False)] for order in turned]
    return [f"{question}\n" + "\n".join(listed) for listed in lines]
