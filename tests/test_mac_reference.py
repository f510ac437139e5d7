"""MAC gives the numbers of one that is written out, on several architectures, and its bank has no order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from families import build
from gists import DOCUMENTS, random_gist
from macs import random_mac
from memograft.memory.base import Model
from memograft.memory.gist.compress import Opening, compressed, maps
from memograft.memory.gist.data import Asked, Batch
from memograft.memory.mac.loss import Drawn, answer_logits, bank_of, found_in, loss_of
from memograft.memory.mac.networks import CrossAttention
from memograft.memory.mac.weights import fresh
from memograft.model.backbone import Backbone
from reference.mac import aggregated, changed, perceptron, prefixed, states

ALL = Drawn()
QUESTION, ANSWER = (1, 4, 30, 31, 32, 2, 5), (60, 61, 62, 2)
FAMILIES = ("llama", "gpt2", "mistral", "qwen3", "phi", "gpt_neox", "granite", "gemma2")
ROWS = (Asked(QUESTION, QUESTION, ANSWER, (0,)), Asked(QUESTION[:5], QUESTION[:5], ANSWER[:2], (2, 1)))
BATCH = Batch(DOCUMENTS, ROWS, Opening(QUESTION[:2], 2))


def model_of(backbone: Backbone) -> Model:
    return Model(backbone, None, 0, "")  # type: ignore[arg-type]


def made(family: str, **options: Any) -> tuple[Backbone, Any]:
    model = build(family)
    model.set_attn_implementation("eager")
    backbone = Backbone.of(model)
    return backbone, random_mac(backbone, **options)


def answered(
    backbone: Backbone, weights: Any, bank: torch.Tensor, seen: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """The logits of each row's answer."""
    model = model_of(backbone)
    return by_row(answer_logits(model, weights, BATCH, found_in(model, weights, ROWS, bank, seen)))


def by_row(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return logits.split([len(row.answer) for row in ROWS])


def loss(
    backbone: Backbone,
    weights: Any,
    drawn: Drawn = ALL,
    learns: Any = (True,) * 3,
    **terms: Any,
) -> torch.Tensor:
    model = model_of(backbone)
    return loss_of(model, weights, BATCH, bank_of(model, weights, DOCUMENTS, learns), drawn, **terms)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_answers_are_those_of_the_method_written_out(family: str) -> None:
    backbone, weights = made(family)
    networks, known = weights.networks, maps(backbone)

    def behind(ids: Any, tokens: torch.Tensor) -> torch.Tensor:
        return states(backbone.model, backbone.ffn[0], known, weights, ids, tokens)

    bank = weights.documents(backbone, DOCUMENTS, 0)
    naive = [perceptron(behind(ids, networks.document_tokens), networks.document_head) for ids in DOCUMENTS]
    expected = torch.stack(naive)  # up to several units
    torch.testing.assert_close(bank, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))
    together = answered(backbone, weights, bank)
    for n, row in enumerate(ROWS):
        found = aggregated(networks, behind(row.prompt, networks.question_tokens), naive)
        logits = prefixed(backbone.model, weights, found, 2, row.prompt + row.answer[:-1])
        torch.testing.assert_close(together[n], logits[-len(row.answer) :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_answers_from_a_lora_are_too(family: str) -> None:
    backbone, weights = made(family, modulation="lora")
    bank = weights.documents(backbone, DOCUMENTS, 0)
    together, none = answered(backbone, weights, bank), torch.zeros(0)
    for n, row in enumerate(ROWS):
        asked = weights.questions(backbone, [row.prompt], 0)
        found, text = weights.networks.aggregate(asked, bank)[0], row.prompt + row.answer[:-1]
        logits = changed(backbone.model, backbone.projections, weights, found, text)[-len(row.answer) :]
        torch.testing.assert_close(together[n], logits, rtol=1e-4, atol=1e-5)
        none = backbone.model(input_ids=torch.tensor([text])).logits[0, -len(row.answer) :]
        assert float((none - logits).abs().max()) > 1e-3


def test_a_new_lora_changes_nothing_and_learns() -> None:
    """B is 0, so that only A's gradients are."""
    model = build("llama")
    backbone = Backbone.of(model)
    weights = fresh(
        backbone, DOCUMENTS[1], tokens=3, window=64, rank=4, blocks=2, seed=5, on_documents=True, modulation="lora"
    )
    bank = weights.documents(backbone, DOCUMENTS, 0)
    logits = answered(backbone, weights, bank)
    plain = model(input_ids=torch.tensor([ROWS[0].prompt + ROWS[0].answer[:-1]])).logits[0, -len(ANSWER) :]
    torch.testing.assert_close(logits[0], plain, rtol=1e-4, atol=1e-5)
    (found,) = torch.autograd.grad(loss(backbone, weights), [weights.networks.modulation.weight])
    for a, b in weights.form.of(found.T[None]).values():  # type: ignore[union-attr]
        assert float(a.abs().max()) == 0
        assert float(b.abs().max()) > 0


def test_so_are_the_gradients() -> None:
    backbone, weights = made("llama")
    names, trained = zip(*weights.named.items(), strict=True)
    own = torch.autograd.grad(loss(backbone, weights), trained)
    networks, known, total = weights.networks, maps(backbone), torch.zeros(())
    bank = [
        perceptron(
            states(backbone.model, backbone.ffn[0], known, weights, ids, networks.document_tokens),
            networks.document_head,
        )
        for ids in DOCUMENTS
    ]
    for row in ROWS:
        asked = states(backbone.model, backbone.ffn[0], known, weights, row.prompt, networks.question_tokens)
        logits = prefixed(backbone.model, weights, aggregated(networks, asked, bank), 2, row.prompt + row.answer[:-1])
        goal = torch.tensor(row.answer)
        total = total + torch.nn.functional.cross_entropy(logits[-len(goal) :], goal, reduction="sum")
    for name, mine, other in zip(names, own, torch.autograd.grad(total, trained), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=name)
        assert float(other.abs().max()) > 0, name


@torch.no_grad()
def test_the_order_of_the_bank_does_not_matter_and_its_content_does() -> None:
    backbone, weights = made("llama")
    bank = weights.documents(backbone, DOCUMENTS, 0)
    first = torch.cat(answered(backbone, weights, bank))
    torch.testing.assert_close(torch.cat(answered(backbone, weights, bank.flip(0))), first, rtol=1e-4, atol=1e-5)
    other = torch.cat(answered(backbone, weights, bank[:2]))
    assert float((other - first).abs().max()) > 1e-3


@torch.no_grad()
def test_a_question_alone_sees_its_own_documents() -> None:
    backbone, weights = made("llama")
    bank = weights.documents(backbone, DOCUMENTS, 0)
    alone = answered(backbone, weights, bank, torch.tensor([[True, False, False], [True, True, True]]))
    torch.testing.assert_close(alone[0], answered(backbone, weights, bank[:1])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone[1], answered(backbone, weights, bank)[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_documents_without_gradients_are_in_the_bank() -> None:
    backbone, weights = made("llama")
    whole, half = (loss(backbone, weights, learns=learns) for learns in ([True] * 3, [True, False, False]))
    torch.testing.assert_close(whole, half)
    with torch.enable_grad():
        without = loss(backbone, weights, learns=[False] * 3)
        (found,) = torch.autograd.grad(without, [weights.networks.document_tokens], allow_unused=True)
    assert found is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_a_bank_that_is_read_in_groups_gives_the_same(family: str) -> None:
    backbone, weights = made(family)
    bank = weights.documents(backbone, DOCUMENTS * 3, 0)
    asked = 4 * weights.questions(backbone, [row.prompt for row in ROWS], 0)
    at_once = weights.networks.aggregate(asked, bank)
    for group in (1, 2, 4, 9, 20):
        found = weights.networks.aggregate(asked, bank, group=group)
        torch.testing.assert_close(found, at_once, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_page_may_be_in_the_prompt_too() -> None:
    """That of the question itself, or of another one."""
    backbone, weights = made("llama")
    pages = ((*QUESTION[:2], 7, 8, 9), (*QUESTION[:2], 7, 4))
    rows = tuple(
        replace(row, full=(*page, *row.prompt[2:]), page=len(page)) for row, page in zip(ROWS, pages, strict=True)
    )
    batch, bank = replace(BATCH, asked=rows), weights.documents(backbone, DOCUMENTS, 0)
    of_bank = found_in(model_of(backbone), weights, rows, bank)
    found = by_row(answer_logits(model_of(backbone), weights, batch, of_bank, {0: 1}))
    for n, (row, text) in enumerate(zip(rows, ((*pages[1], *rows[0].prompt[2:]), rows[1].prompt), strict=True)):
        asked = weights.questions(backbone, [row.prompt], 0)
        mine = weights.networks.aggregate(asked, bank)[0]
        logits = prefixed(backbone.model, weights, mine, 2, (*text, *row.answer[:-1]))
        torch.testing.assert_close(found[n], logits[-len(row.answer) :], rtol=1e-4, atol=1e-5)


def test_the_distance_from_the_gist_is_relative_to_its_variance() -> None:
    """Of questions about one document; the second row is about two."""
    backbone, weights = made("llama")
    model, teacher = model_of(backbone), random_gist(backbone, k=3, window=64)
    whole = loss(backbone, weights, imitate=0.5, teacher=teacher)
    answers = loss(backbone, weights)
    gists = compressed(backbone, teacher, DOCUMENTS, 0)
    found = found_in(model, weights, ROWS, weights.documents(backbone, DOCUMENTS, 0))
    mine = weights.form.of(weights.networks.modulate(found))
    apart = []
    for pair, others in zip(mine, gists.layers, strict=True):
        for own, its in zip(pair, others, strict=True):
            mean = its.mean(0)
            spread = ((its - mean) ** 2).mean()
            if spread > 1e-9 * (its**2).mean():
                apart.append(((own[0] - its[0]) ** 2).mean() / spread)
    assert 0 < len(apart) < 2 * len(gists.layers)  # gists of the first layer are the same for all documents
    expected = 0.5 * torch.stack(apart).mean() * len(ANSWER)
    torch.testing.assert_close(whole - answers, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_few_questions_need_no_keys_of_the_bank() -> None:
    """The result is the same, with and without a mask."""
    torch.manual_seed(0)
    block = CrossAttention(48, 4)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    bank, asked = torch.randn(30, 48), torch.randn(3, 5, 48)
    query = block._split(block.query(block.asking(asked)))
    for mask in (None, torch.rand(3, 1, 1, 30) < 0.5):
        few, many = block._from_few(query, bank, mask, None), block._from_many(query, bank, mask)
        torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-5)
    alone = [block(one[None], bank) for one in asked]  # 4 * 5 rows of queries are fewer than 48
    torch.testing.assert_close(torch.cat(alone), block(asked, bank), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_to_the_own_documents_is_rewarded() -> None:
    """Its negative logarithm for each token of the answer. The first question is about one document, the second about
    two."""
    backbone, weights = made("llama")
    networks, bank = weights.networks, weights.documents(backbone, DOCUMENTS, 0)
    asked = weights.questions(backbone, [row.prompt for row in ROWS], 0)

    def attention(rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(documents,), with each block's own scores."""
        x, total = networks.question_head(rows)[None], torch.zeros(len(tokens))
        for block in networks.blocks:
            query = block._split(block.query(block.asking(x)))[0]
            key = block._split(block.key_value(block.bank(tokens.flatten(0, 1)[None])).chunk(2, -1)[0])[0]
            weights_of = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)  # heads, T, documents * T
            total += weights_of.mean((0, 1)).view(len(tokens), -1).sum(1) / len(networks.blocks)
            x = block(x, tokens.flatten(0, 1))
        return total

    first, second = (attention(rows, bank) for rows in asked)
    torch.testing.assert_close(first.sum(), torch.tensor(1.0))
    rewarded = loss(backbone, weights, point=0.5) - loss(backbone, weights)
    expected = -0.5 * (4 * first[0].log() + 2 * (second[1] + second[2]).log())
    torch.testing.assert_close(rewarded, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_documents_about_which_nothing_is_asked_may_be_in_the_bank() -> None:
    backbone, weights = made("llama")
    model, bank = model_of(backbone), weights.documents(backbone, DOCUMENTS, 0)
    more = torch.cat([bank, weights.documents(backbone, [(40, 41, 42)], 0)])
    with_it, without = loss_of(model, weights, BATCH, more), loss_of(model, weights, BATCH, bank)
    assert float((with_it - without).abs()) > 1e-3
    torch.testing.assert_close(
        loss_of(model, weights, BATCH, more, Drawn(alone=(True, True))),
        loss_of(model, weights, BATCH, bank, Drawn(alone=(True, True))),
    )
