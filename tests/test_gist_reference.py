"""Passes over what may be seen give the numbers of one pass under the paper's mask, eager and sdpa."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from families import build
from gists import DOCUMENTS, closest, random_gist
from memograft.errors import SettingsError, UnsupportedModelError
from memograft.memory.gist.compress import Opening, check_model, compressed, maps
from memograft.memory.gist.data import Asked, Batch
from memograft.memory.gist.train import loss_of
from memograft.memory.gist.views import answer_logits
from memograft.model.backbone import Backbone
from reference.gist import Layout, form, masked_pass

QUESTION, ANSWER = (1, 4, 30, 31, 32, 2, 5), (60, 61, 62, 2)
ATTENTION = ("eager", "sdpa")
EITHER = ("llama", "gpt2", "mistral", "qwen3", "phi", "gpt_neox", "granite")
PAIRS = [*((family, attention) for family in EITHER for attention in ATTENTION), ("gemma2", "eager"), ("gptj", "eager")]
OPENING = Opening(QUESTION[:2], 2)
BATCH = Batch(DOCUMENTS, (Asked(QUESTION, QUESTION, ANSWER, (0, 1, 2)),), OPENING)


def made(family: str, attention: str = "sdpa", **changes: Any) -> Backbone:
    model = build(family, changes=changes)
    model.set_attn_implementation(attention)
    return Backbone.of(model)


@pytest.mark.parametrize(("family", "attention"), PAIRS)
@torch.no_grad()
def test_keys_values_and_logits_are_those_of_the_masked_pass(family: str, attention: str) -> None:
    backbone = made(family, attention)
    weights = random_gist(backbone)
    layout = Layout.of(DOCUMENTS, 2, QUESTION + ANSWER[:-1], weights.tokens, weights.window)
    logits, layers = masked_pass(
        backbone.model,
        maps(backbone),
        weights,
        DOCUMENTS,
        2,
        QUESTION + ANSWER[:-1],
        form(layout.allowed(), attention),
    )
    gists = compressed(backbone, weights, DOCUMENTS, 0)
    assert closest(gists.layers, layers) < 1e-5
    own = answer_logits(backbone, BATCH, "gist", 0, gists, weights.end)
    assert own.shape == (len(ANSWER), backbone.vocabulary)
    torch.testing.assert_close(own, logits[-len(ANSWER) :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("on_documents", [False, True])
def test_so_are_the_gradients(on_documents: bool) -> None:
    backbone = made("llama")
    weights = random_gist(backbone, on_documents=on_documents)
    trained = [weights.embeddings, *weights.adapter.lora_a.values(), *weights.adapter.lora_b.values()]
    own = torch.autograd.grad(loss_of(_model(backbone), weights, BATCH), trained)
    layout = Layout.of(DOCUMENTS, 2, QUESTION + ANSWER[:-1], weights.tokens, weights.window)
    logits, _ = masked_pass(
        backbone.model, maps(backbone), weights, DOCUMENTS, 2, QUESTION + ANSWER[:-1], form(layout.allowed(), "sdpa")
    )
    goal = torch.tensor(ANSWER)
    loss = torch.nn.functional.cross_entropy(logits[-len(ANSWER) :], goal, reduction="sum")
    for mine, other in zip(own, torch.autograd.grad(loss, trained), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        assert float(other.abs().max()) > 0


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_the_mask_hides_the_document(attention: str) -> None:
    """If gists see nothing of their document, no logit behind them depends on it; a mask in the wrong form lets it
    through."""
    backbone = made("llama", attention)
    weights = random_gist(backbone)
    other = tuple((ids[0], *((id * 7 + 3) % 320 for id in ids[1:])) for ids in DOCUMENTS)  # the template is the same
    mask = form(Layout.of(DOCUMENTS, 2, QUESTION, weights.tokens, weights.window).allowed(blind=True), attention)

    def said(documents: Any, mask: torch.Tensor) -> torch.Tensor:
        return masked_pass(backbone.model, maps(backbone), weights, documents, 2, QUESTION, mask)[0]

    torch.testing.assert_close(said(DOCUMENTS, mask), said(other, mask), rtol=1e-5, atol=1e-5)
    seen = form(Layout.of(DOCUMENTS, 2, QUESTION, weights.tokens, weights.window).allowed(), attention)
    wrong = form(Layout.of(DOCUMENTS, 2, QUESTION, weights.tokens, weights.window).allowed(blind=True), "sdpa")
    for leaks in (seen, *([wrong] if attention == "eager" else [])):  # eager adds 0 and 1 to its scores
        assert float((said(DOCUMENTS, leaks) - said(other, leaks)).abs().max()) > 0.1


@torch.no_grad()
def test_questions_see_only_their_gists_and_each_row_is_as_alone() -> None:
    backbone = made("llama")
    weights = random_gist(backbone)
    gists = compressed(backbone, weights, DOCUMENTS, 0)
    rows = [Asked(QUESTION, QUESTION, ANSWER, seen) for seen in ((0, 2), (2, 0), (1,), (0, 1, 2))]
    rows.append(Asked(QUESTION[:4], QUESTION[:4], ANSWER[:2], (1,)))
    logits = answer_logits(backbone, Batch(DOCUMENTS, tuple(rows), OPENING), "gist", 0, gists, weights.end)
    together = logits.split([len(row.answer) for row in rows])
    for n, row in enumerate(rows):
        seen = tuple(range(len(row.gists)))
        own = Batch(tuple(DOCUMENTS[g] for g in row.gists), (Asked(*_same(row), seen),), OPENING)
        alone = answer_logits(backbone, own, "gist", 0, compressed(backbone, weights, own.documents, 0), weights.end)
        torch.testing.assert_close(together[n], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[0], together[1], rtol=1e-4, atol=1e-5)  # in any order
    assert float((together[0] - together[2]).abs().max()) > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2", "phi", "qwen3"])
@torch.no_grad()
def test_the_controls_are_ordinary_passes(family: str) -> None:
    """Also where pages are run once for the questions that share them."""
    backbone = made(family, "eager")
    page, other = (*QUESTION[:2], 7, 8, 9), (*QUESTION[:2], 7, 4)
    asked = (
        Asked(QUESTION, (*page, *QUESTION[2:]), ANSWER, (), asked=2, page=len(page)),
        Asked(QUESTION, (*other, *QUESTION[2:]), ANSWER[:2], (), asked=4, page=len(other)),
        Asked(QUESTION[:4], (*page, *QUESTION[2:4]), ANSWER[:1], (), page=len(page)),
    )
    for rows in (asked, tuple(replace(row, page=0) for row in asked)):
        for view in ("full", "none"):
            logits = answer_logits(backbone, Batch((), rows, OPENING), view, 0, questions=True)
            counts = [row.asked + len(row.answer) for row in rows]
            for row, count, mine in zip(rows, counts, logits.split(counts), strict=True):
                text = row.full if view == "full" else row.prompt
                own = backbone.model(input_ids=torch.tensor([text + row.answer[:-1]])).logits[0]
                torch.testing.assert_close(mine, own[-count:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_page_beyond_the_models_window_is_refused_before_it_is_run(family: str) -> None:
    backbone = made(family)
    page = (5,) * (backbone.max_length + 20)
    batch = Batch((), (Asked(QUESTION, (*page, *QUESTION), ANSWER, (), page=len(page)),), OPENING)
    with pytest.raises(SettingsError, match="documents, question and answer must fit the model's window of"):
        answer_logits(backbone, batch, "full", 0)


@torch.no_grad()
def test_questions_and_answers_have_the_loss_of_the_masked_pass() -> None:
    """Cross-entropy of the last three tokens of the question at half the weight of the answer's."""
    backbone = made("llama")
    weights = random_gist(backbone)
    layout = Layout.of(DOCUMENTS, 2, QUESTION + ANSWER[:-1], weights.tokens, weights.window)
    mask = form(layout.allowed(), "sdpa")
    logits, _ = masked_pass(backbone.model, maps(backbone), weights, DOCUMENTS, 2, QUESTION + ANSWER[:-1], mask)
    each = torch.nn.functional.cross_entropy(logits[3:], torch.tensor(QUESTION[-3:] + ANSWER), reduction="none")
    (row,) = BATCH.asked
    batch = Batch(DOCUMENTS, (replace(row, asked=3),), OPENING)
    own = loss_of(_model(backbone), weights, batch, ask=0.5)
    torch.testing.assert_close(own, 0.5 * each[:3].sum() + each[3:].sum(), rtol=1e-5, atol=1e-5)


def test_models_without_positions_are_refused_by_what_they_lack() -> None:
    backbone = made("falcon", alibi=True)
    with pytest.raises(UnsupportedModelError, match="FalconForCausalLM has positions or a cache that cannot be set"):
        check_model(backbone)


def _same(row: Asked) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return row.prompt, row.full, row.answer


def _model(backbone: Backbone) -> Any:
    from memograft.memory.base import Model

    return Model(backbone, None, 0, "")  # type: ignore[arg-type]
