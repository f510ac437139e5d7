"""Fit a document's gist to the document, after the pass that made it.

    min_G  mean_t KL( p(. | document, q, a_<t)  ||  p(. | G, q, a_<t) )            G: keys and values of the k tokens

The pass has learned on other documents what a gist should hold. A few steps on the gist itself bring it near to what
this document needs. (A cartridge, arXiv 2506.06266, is trained in this way for a whole corpus, on conversations that
the model makes up.) The model stays as it is, and the gist takes as much memory as before.

The questions q and answers a are made of the document alone, in any language: each sentence is the answer to its first
half and to its second half, and the whole text is the answer to "?". With the whole text only, a gist learns to repeat
the document, and not to answer from it (benchmarks/LOG.md).

Every third step has questions of the training that the model answers without their documents (`known_questions`).
Most are about something else and teach the gist when the document is no help: without them, more answers about other
things are taken from the document.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from tqdm import tqdm

from memograft.attribution import sentences
from memograft.memory.base import Model, Task
from memograft.memory.gist.compress import GistWeights
from memograft.memory.gist.data import Asked, Batch, Batches, Sample
from memograft.memory.gist.views import IGNORED, answer_logits, answer_states, targets
from memograft.model.backbone import unsupported
from memograft.model.kv import Piece, reach

__all__ = ["known_questions", "refined", "samples"]

_ROWS = 4  # questions of a pass
_DRAWN, _KNOWN = 1024, 32
_EVERY = 3  # the step that has known questions
_RATE = 0.02  # of Adam, relative to the root mean square of a layer's keys or values
_BETAS = (0.9, 0.99)
_LEAST = 1e-4  # nats; a smaller loss has gradients that round to zero


def samples(text: str) -> list[Sample]:
    """Questions about a document that are made of its text, and their answers; the last is the whole text."""
    found, made = list(sentences(text)), list[Sample]()
    edges = [*(sentence.places[0][0] for sentence in found), len(text)]
    for sentence, (start, end) in zip(found, pairwise(edges), strict=True):
        if len(sentence.words) > 1:
            middle, last = sentence.places[(len(sentence.words) + 1) // 2][0], sentence.places[-1][1]
            halves = text[start:middle].strip(), text[middle:last].strip()
            made += [Sample((text,), f"{half}?", text[start:end].strip()) for half in halves]
    return [*made, Sample((text,), "?", text)]


def known_questions(
    model: Model, samples: Sequence[Sample], window: int, seed: int, *, progress: bool = False
) -> list[tuple[str, str]]:
    """Of up to 1,024 questions that are drawn, the 32 whose answers the model predicts best without documents.

    An answer counts by its least likely token; a guess has one that is unlikely.

    Args:
        model: the model.
        samples: of a training; their documents are not shown.
        window: of the training, W.
        seed: of the draw.
        progress: whether to show a progress bar.
    """
    chosen = random.Random(seed).sample(samples, min(_DRAWN, len(samples)))
    drawn = list({own.answer: own for own in chosen}.values())
    batches, losses = Batches(drawn, model.prompts, window, 1, 1, 0), list[float]()
    for n in tqdm(range(0, len(drawn), _ROWS), "asking without documents", disable=not progress, leave=False):
        batch = batches.batch([[own] for own in drawn[n : n + _ROWS]], None)
        with torch.no_grad():
            logits = answer_logits(model.backbone, batch, "none", model.pad_id)
        goal = targets(batch.asked, logits.device)
        each = cross_entropy(logits, goal[goal != IGNORED], reduction="none")
        losses += [float(own.max()) for own in torch.split(each, [len(row.answer) for row in batch.asked])]
    best = sorted(zip(losses, drawn, strict=True), key=lambda pair: pair[0])[:_KNOWN]
    return [(own.question, own.answer) for _, own in best]


def refined(
    model: Model,
    weights: GistWeights,
    gist: Piece,
    text: str,
    steps: int,
    task: Task,
    known: Sequence[tuple[str, str]] = (),
) -> tuple[Piece, list[float]]:
    """The gist of one document after so many steps, and the loss before each.

    A question that does not fit the model's window is left out. The gist stays as it is if none fits, if the text is
    blank, or if a loss is not finite.

    Args:
        model: the model that answers.
        weights: the trained gist.
        gist: what `compressed` made of the document (1, ...).
        text: of the document, at most W tokens.
        steps: of Adam, with a rate that falls to zero.
        task: it pauses between steps.
        known: questions with answers for every third step; see `known_questions`.

    Raises:
        RequestCancelledError: the task was given up.
        UnsupportedModelError: no gradient comes back through the model, as with some quantised kernels.
    """
    with torch.no_grad():  # the states take less memory than the logits
        turns = [
            cycle([(group, answer_states(model.backbone, group, "full", model.pad_id)) for group in groups])
            for groups in _groups(model, weights, text, known)
        ]
    begin = [tensor.detach().float() for pair in gist.layers for tensor in pair]
    units = [tensor.square().mean().sqrt() for tensor in begin]
    moves = [torch.zeros_like(tensor, requires_grad=True) for tensor in begin]
    optimiser, losses = torch.optim.Adam(moves, lr=_RATE, betas=_BETAS), list[float]()

    def now() -> Piece:
        own = [
            (tensor + move * unit).to(model.backbone.model.dtype)
            for tensor, move, unit in zip(begin, moves, units, strict=True)
        ]
        return replace(gist, layers=tuple(zip(own[::2], own[1::2], strict=True)))

    for step in range(steps if turns else 0):
        group, aim = next(turns[-1 if step % _EVERY == _EVERY - 1 else 0])
        task.pause("compressed")
        with torch.enable_grad():
            loss = _apart(model, weights, group, now(), aim)
            gradients = (
                torch.autograd.grad(loss, moves, allow_unused=True, materialize_grads=True)
                if loss.requires_grad
                else [torch.zeros_like(move) for move in moves]
            )
        value = loss.item()
        if not math.isfinite(value):
            return gist, losses  # float16 has overflowed
        if value > _LEAST and not any(bool(gradient.any()) for gradient in gradients):
            raise unsupported(
                f"no gradient comes back through {type(model.backbone.model).__name__}'s linear maps, as with some "
                "quantised kernels, so a gist cannot be refined",
                "set `refine` to 0, or load the model in bfloat16",
            )
        for move, gradient in zip(moves, gradients, strict=True):
            move.grad = gradient
        optimiser.param_groups[0]["lr"] = _RATE * (1 - step / steps)
        optimiser.step()
        losses.append(value)
    with torch.no_grad():
        return now(), losses


def _apart(model: Model, weights: GistWeights, group: Batch, gist: Piece, aim: tuple[Tensor, Tensor]) -> Tensor:
    """The mean KL divergence of a group's answers from those with the document in view."""
    own = answer_logits(model.backbone, group, "gist", model.pad_id, gist, weights.end).log_softmax(-1)
    with torch.no_grad():
        full = model.backbone.logits(*aim)[0].log_softmax(-1)
    return kl_div(own, full, log_target=True, reduction="none").sum(-1).mean()


def _groups(model: Model, weights: GistWeights, text: str, known: Sequence[tuple[str, str]]) -> Iterator[list[Batch]]:
    """The questions of each step, of similar length: those about the document, and those that the model knows.

    Nothing if none about the document is left.
    """
    if not text.strip():
        return
    made = samples(text)
    every = [*made, *(Sample((text,), *own) for own in known)]
    # Twice the window, because a part of a document may be a few tokens longer when it is tokenized by itself.
    batch = Batches(every, model.prompts, 2 * weights.window, 1, 1, 0).batch([every], None)
    most = min(model.backbone.max_length, reach(model.backbone) or model.backbone.max_length)

    def fits(row: Asked) -> bool:
        return max(len(row.full), weights.end + len(row.prompt)) + len(row.answer) <= most

    def grouped(rows: Sequence[Asked]) -> list[Batch]:
        own = sorted(filter(fits, rows), key=lambda row: len(row.prompt) + len(row.answer))
        return [replace(batch, asked=tuple(own[n : n + _ROWS])) for n in range(0, len(own), _ROWS)]

    *parts, whole = batch.asked[: len(made)]
    if about := grouped(parts) + grouped([whole]):
        yield about
        if others := grouped(batch.asked[len(made) :]):
            yield others
