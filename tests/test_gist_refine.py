"""Steps that fit a document's gist to the document: the loss, and that nothing but the gist changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from families import build
from gists import parts_of, random_gist, saved_gist
from memograft import Bank, Engine, Gist
from memograft.documents import Document
from memograft.errors import RequestCancelledError, SettingsError, UnsupportedModelError
from memograft.evaluation.items import world
from memograft.memory.base import Model, Task
from memograft.memory.gist import folder, refine
from memograft.memory.gist import memory as gist_memory
from memograft.memory.gist.compress import GistWeights, compressed, parts
from memograft.memory.gist.data import Batch, Batches, Sample
from memograft.memory.gist.refine import known_questions, refined, samples
from memograft.memory.gist.views import answer_logits
from memograft.model.backbone import cache_name, cache_of
from memograft.model.kv import Piece, pairs
from test_engine import FACTS, ask
from tokenizers_ import make

OWN: dict[str, Any] = {"window": 64, "on_documents": True}  # models are shared, and keep the gists of other tests
TEXT = "The harbour was built by Ada Brook. It lies in Lindow."


def made(engine: Engine) -> tuple[Model, GistWeights, Piece]:
    """The parts of an engine, a random gist, and what it makes of a document."""
    model = parts_of(engine)
    weights = random_gist(model.backbone, window=64)
    with torch.no_grad():
        return model, weights, compressed(model.backbone, weights, parts(model.prompts, Document(TEXT), 64), 0)


def test_questions_are_made_of_the_text() -> None:
    assert [(own.question, own.answer) for own in samples(TEXT)] == [
        ("The harbour was built?", "The harbour was built by Ada Brook."),
        ("by Ada Brook?", "The harbour was built by Ada Brook."),
        ("It lies?", "It lies in Lindow."),
        ("in Lindow?", "It lies in Lindow."),
        ("?", TEXT),
    ]
    assert {own.documents for own in samples(TEXT)} == {(TEXT,)}
    assert [own.question for own in samples("Hamlet.\n\n1602")] == ["?"]  # a word has no halves
    assert [own.question for own in samples("港口，建于林多。")] == ["港口，建?", "于林多?", "?"]  # noqa: RUF001
    assert [own.question for own in samples("...")] == ["?"]


KNOWN = (("Who wrote Hamlet?", "Hamlet was written by William Shakespeare."), ("Where is Lima?", "In Peru."))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "phi", "granite"])
def test_the_loss_is_the_divergence_from_whole_prompts(make_engine: Any, family: str) -> None:
    """By another route: the model's own passes over whole prompts, one question at a time, in float64 sums.

    The third step has questions that the model knows. At a rate of zero, the gist is the same.
    """
    engine = make_engine(family)
    model, weights, gist = made(engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine, "_RATE", 0.0)
        _, losses = refined(model, weights, gist, TEXT, 3, Task(), KNOWN)
    ours = [samples(TEXT)[:4], [Sample((TEXT,), *own) for own in KNOWN]]
    batches = [Batches(own, model.prompts, 128, 1, 1, 0).batch([own], None) for own in ours]
    for loss, batch in zip(losses[::2], batches, strict=True):
        assert loss == pytest.approx(apart(model, weights, gist, batch), rel=1e-4, abs=1e-5)


def apart(model: Model, weights: GistWeights, gist: Piece, batch: Batch) -> float:
    """The mean KL divergence of the answers' tokens behind the gist from those with the document in the prompt."""
    front, total, count = torch.tensor([batch.opening.ids]), 0.0, 0
    forward = model.backbone.model
    for row in batch.asked:
        with torch.no_grad():
            whole = forward(input_ids=torch.tensor([row.full + row.answer])).logits[0, len(row.full) - 1 : -1]
            places = torch.arange(weights.window - front.shape[1], weights.window)[None]
            cache = cache_of(forward(input_ids=front, position_ids=places, use_cache=True))
            for n, layer in enumerate(gist.layers):
                cache.update(*layer, n)
            rest = torch.tensor([row.prompt[batch.opening.spared :] + row.answer])
            places = torch.arange(weights.end, weights.end + rest.shape[1])[None]
            known = {cache_name(forward.forward): cache}
            own = forward(input_ids=rest, position_ids=places, **known).logits[0, -len(row.answer) - 1 : -1]
        one, other = own.double().log_softmax(-1), whole.double().log_softmax(-1)
        total += float((other.exp() * (other - one)).sum())
        count += len(row.answer)
    return total / count


def test_known_questions_are_those_with_no_unlikely_token(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another route: whole prompts, one at a time. An answer comes once, whatever the question."""
    monkeypatch.setattr(refine, "_KNOWN", 3)
    engine = make_engine()
    model = parts_of(engine)
    asked = [(f"{fact.split()[0]} of {n}?", fact) for n, fact in enumerate(FACTS * 2)]
    asked += [("Who?", "Ada."), ("Where?", "In Peru."), ("When?", "In 1602."), ("What?", "A harbour.")]
    every = [Sample((TEXT,), *own) for own in asked]
    worst: dict[tuple[str, str], float] = {}
    for question, answer in asked:
        (row,) = Batches([Sample((TEXT,), question, answer)], model.prompts, 64, 1, 1, 0).all(1)[0].asked
        with torch.no_grad():
            logits = model.backbone.model(input_ids=torch.tensor([row.prompt + row.answer])).logits[0]
        goal = torch.tensor(row.answer)
        losses = -logits[len(row.prompt) - 1 : -1].log_softmax(-1)[torch.arange(len(goal)), goal]
        worst[question, answer] = float(losses.max())
    found = known_questions(model, every, 64, 0)
    answers = {answer for _, answer in found}
    assert len(answers) == len(found) == 3
    # Of two questions with the same answer, either may have been drawn.
    others = {other: max(v for (_, own), v in worst.items() if own == other) for _, other in asked}
    assert max(map(worst.__getitem__, found)) < min(v for own, v in others.items() if own not in answers)
    assert set(found) <= set(asked)
    assert known_questions(model, every, 64, 0) == found


def test_steps_lower_the_loss_and_change_nothing_else(engine: Engine) -> None:
    model, weights, gist = made(engine)
    network = model.backbone.model
    before = {name: own.clone() for name, own in network.state_dict().items()}
    wanted = {name: own.requires_grad for name, own in network.named_parameters()}
    begin = [tensor.clone() for pair in gist.layers for tensor in pair]
    own, losses = refined(model, weights, gist, TEXT, 60, Task())
    assert len(losses) == 60
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])  # both groups of questions
    again, same = refined(model, weights, gist, TEXT, 60, Task())
    assert losses == same
    for one, other in zip(flat(own), flat(again), strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(begin, flat(gist), strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert {name: tensor.requires_grad for name, tensor in network.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in network.parameters())
    assert own.x is gist.x


def flat(piece: Piece) -> list[Tensor]:
    return [tensor for pair in piece.layers for tensor in pair]


def test_a_question_that_does_not_fit_is_left_out(make_engine: Any) -> None:
    engine = make_engine()
    model, weights, gist = made(engine)
    short = replace(model.backbone, max_length=weights.end + 10)
    same, losses = refined(replace(model, backbone=short), weights, gist, TEXT, 5, Task())
    assert losses == []
    assert all(torch.equal(a, b) for a, b in zip(flat(same), flat(gist), strict=True))
    assert refined(model, weights, gist, " \n", 5, Task())[1] == []
    of_text = Batches(samples(TEXT), model.prompts, 128, 1, 1, 0).batch([samples(TEXT)], None).asked
    needs = [max(len(row.full), weights.end + len(row.prompt)) + len(row.answer) for row in of_text]
    some = replace(model.backbone, max_length=sorted(needs)[1])
    assert len(refined(replace(model, backbone=some), weights, gist, TEXT, 5, Task())[1]) == 5


def test_a_gist_stays_as_it_is_if_a_loss_is_not_finite(engine: Engine) -> None:
    model, weights, gist = made(engine)
    broken = replace(gist, layers=((gist.layers[0][0] * torch.nan, gist.layers[0][1]), *gist.layers[1:]))
    same, losses = refined(model, weights, broken, TEXT, 5, Task())
    assert (same is broken, losses) == (True, [])


def test_giving_up_ends_it(engine: Engine) -> None:
    model, weights, gist = made(engine)
    calls: list[int] = []
    with pytest.raises(RequestCancelledError, match="given up while its documents were compressed"):
        refined(model, weights, gist, TEXT, 50, Task(lambda: bool(calls.append(1)) or len(calls) == 3))
    assert len(calls) == 3


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_without_gradients_is_refused(frozen: bool) -> None:
    """Like a quantised kernel whose output has no gradient."""
    network = build("llama").requires_grad_(not frozen)
    with Engine(network, make("bpe")) as engine:
        model, weights, gist = made(engine)
        maps = [m for name, m in network.named_modules() if name.endswith("o_proj")]
        handles = [m.register_forward_hook(lambda _module, _args, out: out.detach()) for m in maps]
        with pytest.raises(UnsupportedModelError, match=r"no gradient comes back through .*; set `refine` to 0, or"):
            refined(model, weights, gist, TEXT, 5, Task())
        for handle in handles:
            handle.remove()
        assert len(refined(model, weights, gist, TEXT, 5, Task())[1]) == 5


class TestInAnEngine:
    """`Gist(refine=N)`."""

    def test_each_document_is_refined_once_and_by_itself(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts: list[str] = []

        def counted(*args: Any) -> Any:
            texts.append(args[3])
            return refined(*args)

        monkeypatch.setattr(gist_memory, "refined", counted)
        plain = Gist(str(saved_gist(engine, tmp_path / "gist", **OWN)))
        memory = replace(plain, refine=3)
        alone = engine.memorize(FACTS[:1], memory)
        both = engine.memorize(FACTS[:2], memory)
        assert texts == FACTS[:2]
        engine.answer_batch([ask(documents=FACTS[:2], memory=memory), ask(documents=FACTS[:2], memory=plain)])
        assert texts == FACTS[:2]
        assert len({alone.id, both.id, engine.memorize(FACTS[:2], plain).id}) == 3
        for pair, other in zip(pairs(alone.segment.kv_cache), pairs(both.segment.kv_cache), strict=True):  # type: ignore[union-attr]
            assert torch.equal(pair[0][:, :, :3], other[0][:, :, :3])
        own, without = (engine.next_token_logprobs(ask(documents=FACTS[:2], memory=m)) for m in (memory, plain))
        assert not torch.equal(own, without)
        torch.testing.assert_close(engine.next_token_logprobs(ask(memory=both)), own, rtol=1e-5, atol=1e-5)
        engine.answer(ask(documents=[" ".join(FACTS * 3)], memory=memory))
        assert len(texts) > 3  # the parts of a long document
        assert all(text.strip() in " ".join(FACTS * 3) for text in texts[2:])

    def test_a_bank_keeps_it(self, make_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = Gist(str(saved_gist(make_engine(), tmp_path / "gist", **OWN)), refine=2)
        request = ask(documents=FACTS[:2], memory=memory)
        first = make_engine(bank=Bank(tmp_path / "bank", prefix_files="exact")).next_token_logprobs(request)
        monkeypatch.setattr(gist_memory, "refined", None)
        again = make_engine(bank=Bank(tmp_path / "bank", prefix_files="exact"))
        assert torch.equal(again.next_token_logprobs(request), first)

    def test_a_model_whose_weights_learn_stays_as_it_is(self, tmp_path: Path) -> None:
        network = build("llama")
        network.requires_grad_(True)
        before = copy.deepcopy(network.state_dict())
        with Engine(network, make("bpe")) as engine:
            memory = Gist(str(saved_gist(engine, tmp_path / "gist", **OWN)), refine=2)
            engine.answer(ask(documents=FACTS[:1], memory=memory))
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
        assert all(own.requires_grad and own.grad is None for own in network.parameters())

    def test_its_range(self) -> None:
        for wrong in (-1, 1.5, True):
            with pytest.raises(SettingsError, match=rf"`refine` must be a whole number of at least 0, got {wrong}"):
                Gist("somewhere", refine=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("about", ["unseen", "elsewhere"])
def test_tiny_predicts_from_it_as_from_the_page(about: str) -> None:
    """The plain answers' tokens, on pages that the bundled gist has not seen, and on pages about something else."""
    known = folder.about(Path("tiny")).known
    answers = " ".join(answer for _, answer in known)
    asked = [item for item in world("tune") if item.set == about and item.answers[0] not in answers][:6]
    with Engine.from_pretrained("tiny") as engine:
        model = parts_of(engine)
        weights = folder.read(Path("tiny"), model.backbone)
        far = {0: 0.0, 40: 0.0}
        for item in asked:
            text, plain = item.documents[0].text, engine.answer(item.question, item.documents[:1], memory=None).text
            batch = Batches([Sample((text,), item.question, plain)], model.prompts, 256, 1, 1, 0).all(1)[0]
            with torch.no_grad():
                gist = compressed(model.backbone, weights, batch.documents, 0)
                full = answer_logits(model.backbone, batch, "full", 0).log_softmax(-1)
                for steps in far:
                    own = refined(model, weights, gist, text, steps, Task(), known)[0]
                    said = answer_logits(model.backbone, batch, "gist", 0, own, weights.end).log_softmax(-1)
                    far[steps] += float((full.exp() * (full - said)).sum(-1).mean())
    assert far[40] < 0.7 * far[0], far
