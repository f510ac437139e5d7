"""MAC gives the numbers of one that is written out, on several architectures, and its bank has no order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from families import build
from gists import DOCUMENTS
from macs import random_mac
from memograft.memory.base import Model
from memograft.memory.gist.compress import Opening, maps
from memograft.memory.gist.data import Asked, Batch
from memograft.memory.mac.networks import hierarchical
from memograft.memory.mac.train import answer_logits, loss_of
from memograft.model.backbone import Backbone
from reference.mac import aggregated, perceptron, prefixed, states

QUESTION, ANSWER = (1, 4, 30, 31, 32, 2, 5), (60, 61, 62, 2)
FAMILIES = ("llama", "gpt2", "mistral", "qwen3", "phi", "gpt_neox", "granite", "gemma2")
ROWS = (Asked(QUESTION, QUESTION, ANSWER, (0,)), Asked(QUESTION[:5], QUESTION[:5], ANSWER[:2], (2, 1)))
BATCH = Batch(DOCUMENTS, ROWS, Opening(QUESTION[:1], 1))


def model_of(backbone: Backbone) -> Model:
    return Model(backbone, None, 0, "")  # type: ignore[arg-type]


def made(family: str) -> tuple[Backbone, Any]:
    model = build(family)
    model.set_attn_implementation("eager")
    backbone = Backbone.of(model)
    return backbone, random_mac(backbone)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_answers_are_those_of_the_method_written_out(family: str) -> None:
    backbone, weights = made(family)
    networks, known = weights.networks, maps(backbone)

    def behind(ids: Any, tokens: torch.Tensor) -> torch.Tensor:
        return states(backbone.model, backbone.ffn[0], known, weights, ids, tokens)

    bank = weights.documents(backbone, DOCUMENTS, 0)
    naive = [perceptron(behind(ids, networks.document_tokens), networks.document_head) for ids in DOCUMENTS]
    torch.testing.assert_close(bank, torch.stack(naive), rtol=1e-5, atol=1e-5)
    together = answer_logits(model_of(backbone), weights, ROWS, bank)
    for n, row in enumerate(ROWS):
        found = aggregated(networks, behind(row.prompt, networks.question_tokens), naive)
        logits = prefixed(backbone.model, networks, found, row.prompt + row.answer[:-1])
        torch.testing.assert_close(together[n, -len(row.answer) :], logits[-len(row.answer) :], rtol=1e-4, atol=1e-5)


def test_so_are_the_gradients() -> None:
    backbone, weights = made("llama")
    names, trained = zip(*weights.named.items(), strict=True)
    own = torch.autograd.grad(loss_of(model_of(backbone), weights, BATCH, [True] * 3), trained)
    networks, known, loss = weights.networks, maps(backbone), torch.zeros(())
    bank = [
        perceptron(
            states(backbone.model, backbone.ffn[0], known, weights, ids, networks.document_tokens),
            networks.document_head,
        )
        for ids in DOCUMENTS
    ]
    for row in ROWS:
        asked = states(backbone.model, backbone.ffn[0], known, weights, row.prompt, networks.question_tokens)
        logits = prefixed(backbone.model, networks, aggregated(networks, asked, bank), row.prompt + row.answer[:-1])
        goal = torch.tensor(row.answer)
        loss = loss + torch.nn.functional.cross_entropy(logits[-len(goal) :], goal, reduction="sum")
    for name, mine, other in zip(names, own, torch.autograd.grad(loss, trained), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=name)
        assert float(other.abs().max()) > 0, name


@torch.no_grad()
def test_the_order_of_the_bank_does_not_matter_and_its_content_does() -> None:
    backbone, weights = made("llama")
    model, bank = model_of(backbone), weights.documents(backbone, DOCUMENTS, 0)
    first = answer_logits(model, weights, ROWS, bank)
    torch.testing.assert_close(answer_logits(model, weights, ROWS, bank.flip(0)), first, rtol=1e-4, atol=1e-5)
    other = answer_logits(model, weights, ROWS, bank[:2])
    assert float((other - first).abs().max()) > 1e-3


@torch.no_grad()
def test_a_question_alone_sees_its_own_documents() -> None:
    backbone, weights = made("llama")
    model, bank = model_of(backbone), weights.documents(backbone, DOCUMENTS, 0)
    alone = answer_logits(model, weights, ROWS, bank, [(0,), ()])
    torch.testing.assert_close(alone[0], answer_logits(model, weights, ROWS, bank[:1])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone[1], answer_logits(model, weights, ROWS, bank)[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_documents_without_gradients_are_in_the_bank() -> None:
    backbone, weights = made("llama")
    model = model_of(backbone)
    whole, half = (loss_of(model, weights, BATCH, learns) for learns in ([True] * 3, [True, False, False]))
    torch.testing.assert_close(whole, half)
    with torch.enable_grad():
        loss = loss_of(model, weights, BATCH, [False] * 3)
        (found,) = torch.autograd.grad(loss, [weights.networks.document_tokens], allow_unused=True)
    assert found is None


@torch.no_grad()
def test_groups_are_aggregated_and_their_results_again() -> None:
    backbone, weights = made("llama")
    networks, bank = weights.networks, weights.documents(backbone, DOCUMENTS, 0)
    (asked,) = weights.questions(backbone, [QUESTION], 0)
    all_at_once = networks.aggregate(asked[None], bank.flatten(0, 1))[0]
    torch.testing.assert_close(hierarchical(networks, asked, bank, 3), all_at_once)
    first, second = (networks.aggregate(asked[None], part.flatten(0, 1)) for part in (bank[:2], bank[2:]))
    again = networks.aggregate(asked[None], torch.cat([first[0], second[0]]))[0]
    torch.testing.assert_close(hierarchical(networks, asked, bank, 2), again)
