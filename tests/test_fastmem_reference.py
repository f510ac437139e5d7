"""FastMem against a naive implementation that differentiates the whole model."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from families import FAMILIES, ROUTED, build
from memograft.documents import Document
from memograft.memory.fastmem.memory import FastMem
from memograft.memory.fastmem.rows import context_rows, merge
from memograft.memory.fastmem.train import memorize
from memograft.model.adapter import applied, stack
from memograft.model.backbone import Backbone, linear_shape
from memograft.model.prefill import prefill
from memograft.prompt.builder import Prompt, PromptBuilder
from reference import fastmem as reference
from tokenizers_ import make

DENSE = sorted(set(FAMILIES) - ROUTED - {"qwen2_moe"})
DOCUMENTS = [Document("The harbour master of Velmora is Ansel Quint."), Document("The Seine has 45 colours.")]
QUESTION = [{"role": "user", "content": "Who is the harbour master?"}]


@cache
def backbone(family: str) -> Backbone:
    return Backbone.of(build(family).requires_grad_(False))


def prompts() -> tuple[Prompt, Prompt]:
    """The assistant turn that the paper memorizes, and the prompt for the answer."""
    builder = PromptBuilder(make("bpe"))
    return builder.as_assistant(DOCUMENTS), builder.build(QUESTION, DOCUMENTS)


def close(ours: object, theirs: object) -> None:
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


def compare(
    family: str, settings: FastMem, text: Prompt, trained: reference.Trained, minimum: float, end: int | None = None
) -> None:
    parts, answering = backbone(family), prompts()[1]
    filled = prefill(parts, [text.ids], 0)
    adapter, report = memorize(parts, context_rows(filled, 0, text, end), settings)[0]
    model, losses, per_token, kl = trained
    close(report.losses, losses)
    close(report.token_losses_after, per_token)
    close(report.loss_after, per_token.mean())
    assert report.kl == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert report.loss_before - report.loss_after > minimum
    ids = torch.tensor([answering.ids])
    with torch.no_grad():
        theirs = model(input_ids=ids).logits[0, -1]
        before = parts.model(input_ids=ids).logits[0, -1]
        with applied(parts, stack([adapter], parts)):
            ours = parts.model(input_ids=ids).logits[0, -1]
    close(ours, theirs)
    assert not torch.equal(ours, before)


@pytest.mark.parametrize("family", DENSE)
def test_paper_recipe_equals_the_naive_one(family: str) -> None:
    text = prompts()[0]
    names = list(backbone(family).projections)
    trained = reference.full(backbone(family).model, names, text.ids, text.context, lr=1e-5)
    compare(family, FastMem.paper(), text, trained, minimum=0.0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "cohere", "qwen2_moe"])
def test_paper_recipe_at_a_large_learning_rate_equals_the_naive_one(family: str) -> None:
    text = prompts()[0]
    names = list(backbone(family).projections)
    settings = {"lr": 3e-3, "beta": 0.7, "decay": 0.1, "steps": 7}
    trained = reference.full(backbone(family).model, names, text.ids, text.context, **settings)
    ours = FastMem.paper(learning_rate=3e-3, kl_weight=0.7, weight_decay=0.1, steps=7)
    compare(family, ours, text, trained, minimum=0.1)


@pytest.mark.parametrize("end", [None, 2], ids=["open", "ended"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "olmo2", "phi3", "gptj", "gpt2", "granite", "qwen2_moe"])
def test_lora_in_the_prompt_equals_the_naive_one(family: str, end: int | None) -> None:
    text = prompts()[1]
    ends = [] if end is None else [(stop - 1, end) for _, stop in text.spans]
    trained = reference.lora(
        backbone(family).model,
        list(backbone(family).projections),
        text.ids,
        text.context,
        rank=4,
        seed=3,
        shape=linear_shape,
        steps=10,
        lr=5e-3,
        beta=0.1,
        decay=0.0,
        ends=ends,
    )
    ours = FastMem(steps=10, learning_rate=5e-3, rank=4, seed=3, shortlist=None)
    compare(family, ours, text, trained, minimum=0.02, end=end)


def test_the_assistant_text_is_the_papers() -> None:
    """The loss omits BOS and the assistant header, and includes the end of the turn."""
    tokenizer, text = make("bpe"), prompts()[0]
    said = "\n\n".join(d.text for d in DOCUMENTS)
    assert tokenizer.decode(text.ids) == f"<s><|assistant|>{said}</s>"
    assert tokenizer.decode([text.ids[t] for t in text.context]) == f"{said}</s>"


def test_a_batch_of_the_paper_recipe_equals_the_naive_one_row_by_row() -> None:
    builder, parts = PromptBuilder(make("bpe")), backbone("llama")
    texts = [builder.as_assistant([d]) for d in DOCUMENTS]
    filled = prefill(parts, [t.ids for t in texts], 0)
    rows = merge([context_rows(filled, n, text) for n, text in enumerate(texts)])
    for text, (_, report) in zip(texts, memorize(parts, rows, FastMem.paper(learning_rate=1e-3)), strict=True):
        _, losses, per_token, _ = reference.full(parts.model, list(parts.projections), text.ids, text.context, lr=1e-3)
        close(report.losses, losses)
        close(report.token_losses_after, per_token)
