"""Training of gists: what changes, what a step's batch is, and that an interrupted run has the same result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families import build
from gists import closest, parts_of
from memograft import Engine, Gist
from memograft.errors import MemoryFormatError, SettingsError, UnsupportedModelError
from memograft.memory.fit import Progress
from memograft.memory.gist import folder
from memograft.memory.gist.compress import compressed, maps, parts
from memograft.memory.gist.data import Batches, Sample
from memograft.memory.gist.train import GistTraining, evaluated, fresh, loss_of, train
from memograft.memory.gist.views import answer_logits, right
from memograft.model.key_bias import attention
from test_engine import FACTS, ask

SHORT = GistTraining(tokens=2, window=64, steps=6, groups=2, rank=4, learning_rate=0.01, warmup=0.2)
SAMPLES = [
    Sample(("The capital of France is Paris.",), "What is the capital?", "Paris"),
    Sample(("The capital of France is Paris.",), "Of what is it the capital?", "France"),
    Sample(("A sailor wrote it in 1932.", "Numbers are 1 and 2."), "Who wrote it?", "A sailor"),
    Sample(("Bergen is a town.",), "What is Bergen?", "a town"),
    Sample(("The river is the Seine.",), "Which river?", "the Seine"),
]


def batches(engine: Engine, **changes: Any) -> Batches:
    arguments = {"window": 64, "most": 3, "questions": 4, "seed": 0} | changes
    return Batches(SAMPLES, parts_of(engine).prompts, **arguments)  # type: ignore[arg-type]


def run(engine: Engine, path: Path, settings: GistTraining = SHORT, **options: Any) -> Progress:
    return train(parts_of(engine), SAMPLES, settings, path, progress=False, **options)[1]


def tensors(path: Path, engine: Engine) -> dict[str, torch.Tensor]:
    return folder.read(path, parts_of(engine).backbone).named


class TestBatches:
    """A step's batch depends on the seed and the step alone."""

    def test_the_same_step_has_the_same_batch(self, engine: Engine) -> None:
        one, other = batches(engine), batches(engine)
        steps = [one.of_step(step, 2) for step in range(6)]
        assert [other.of_step(step, 2) for step in reversed(range(6))] == steps[::-1]
        assert batches(engine, seed=1).of_step(0, 2) != steps[0]
        assert len(one) == 4

    def test_an_epoch_has_every_group_once(self, engine: Engine) -> None:
        made = batches(engine)
        for epoch in (0, 1):
            seen = [ids for step in (0, 1) for part in made.of_step(2 * epoch + step, 2) for ids in part.documents]
            expected = [part for s in SAMPLES for text in s.documents for part in _parts(engine, text)]
            assert sorted(seen) == sorted(set(expected))

    def test_once_has_the_first_groups_of_an_epoch(self, engine: Engine) -> None:
        made = batches(engine)
        for count, passes in ((1, 1), (3, 2), (4, 2), (9, 2)):
            parts = list(made.once(count, 2))
            assert len(parts) == passes
            groups = [ids for step in range(min(count, 4)) for part in made.of_step(step, 1) for ids in part.documents]
            assert sorted(ids for part in parts for ids in part.documents) == sorted(groups)

    def test_questions_see_their_own_documents_and_some_others(self, engine: Engine) -> None:
        made, counts = batches(engine), set()
        for step in range(20):
            (batch,) = made.of_step(step, 4)
            for row in batch.asked:
                texts = [engine.tokenizer.decode(row.full)]
                own = [n for n, ids in enumerate(batch.documents) if engine.tokenizer.decode(ids[-6:]) in texts[0]]
                assert set(own) <= set(row.gists)
                assert len(set(row.gists)) == len(row.gists) <= 3
                counts.add(len(row.gists) - len(own))
        assert counts >= {0, 1, 2}
        assert all(len(row.gists) <= 2 for row in batches(engine, most=1).of_step(0, 4)[0].asked)

    def test_parts_of_a_step_are_the_step(self, engine: Engine) -> None:
        whole, halves = batches(engine, most=1).of_step(3, 4), batches(engine, most=1).of_step(3, 4, 2)
        assert len(halves) == 2
        assert [ids for half in halves for ids in half.documents] == list(whole[0].documents)
        assert sorted(row.prompt for half in halves for row in half.asked) == sorted(r.prompt for r in whole[0].asked)

    def test_the_answer_ends_its_turn(self, engine: Engine) -> None:
        (batch,) = batches(engine).all(4)
        assert len(batch.asked) == len(SAMPLES)
        answers = {engine.tokenizer.decode(row.answer) for row in batch.asked}
        assert "Paris</s>" in answers
        assert {len(row.gists) for row in batch.asked} == {1, 2}

    def test_a_question_ends_both_prompts(self, engine: Engine) -> None:
        (batch,) = batches(engine).all(4)
        for row, sample in zip(batch.asked, SAMPLES, strict=True):
            tail = engine.tokenizer.decode(row.prompt[-row.asked :])
            assert sample.question[len(sample.question) // 2 :] in tail
            assert row.full[-row.asked :] == row.prompt[-row.asked :]
            assert sample.question not in engine.tokenizer.decode(row.full[: row.page])
            assert all(text in engine.tokenizer.decode(row.full[: row.page]) for text in sample.documents)

    def test_no_samples_are_refused(self, engine: Engine) -> None:
        with pytest.raises(SettingsError, match="training needs at least one sample, got none"):
            Batches([], parts_of(engine).prompts, 64, 1, 1, 0)


def _parts(engine: Engine, text: str) -> list[tuple[int, ...]]:
    from memograft.documents import Document

    return parts(parts_of(engine).prompts, Document(text), 64)


def test_a_batch_has_the_loss_of_its_questions_alone(engine: Engine) -> None:
    """Packed batches: padding, other documents and other questions change nothing."""
    model, made = parts_of(engine), batches(engine)
    weights = fresh(model.backbone, SHORT, made.of_step(0, 1)[0], 0)
    (batch,) = made.all(4)
    for shares in ((0.0, 0.0), (0.5, 0.3), (1.0, 0.0), (1.0, 1.0)):
        together = loss_of(model, weights, batch, *shares)
        alone = sum(loss_of(model, weights, replace(batch, asked=(row,)), *shares) for row in batch.asked)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_distilling_is_the_divergence_from_the_full_prompt(engine: Engine) -> None:
    model, made = parts_of(engine), batches(engine)
    weights = fresh(model.backbone, SHORT, made.of_step(0, 1)[0], 0)
    (batch,) = made.all(4)
    gists = compressed(model.backbone, weights, batch.documents, 0)
    own = answer_logits(model.backbone, batch, "gist", 0, gists, weights.end).log_softmax(-1)
    full = answer_logits(model.backbone, batch, "full", 0).log_softmax(-1)
    divergence = (full.exp() * (full - own)).sum()
    torch.testing.assert_close(loss_of(model, weights, batch, 1.0), divergence, rtol=1e-4, atol=1e-4)


def test_only_its_own_weights_change(engine: Engine, tmp_path: Path) -> None:
    model = engine.model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    untrained = fresh(parts_of(engine).backbone, SHORT, batches(engine).of_step(0, 1)[0], 0).named
    done = run(engine, tmp_path / "gist")
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    trained = tensors(tmp_path / "gist", engine)
    assert trained.keys() == untrained.keys()
    assert all(not torch.equal(trained[name], untrained[name]) for name in trained)
    assert (done.step, len(done.losses)) == (6, 6)
    assert done.tokens > 6 * 2 * 10


def test_maps_on_which_no_gist_depends_are_not_trained(engine: Engine) -> None:
    backbone = parts_of(engine).backbone
    made = fresh(backbone, SHORT, batches(engine).of_step(0, 1)[0], 0)
    names = set(maps(backbone))
    unused = {
        name for name in names if name.startswith("model.layers.1.") and name.split(".")[-1] not in ("k_proj", "v_proj")
    }
    assert set(made.adapter.lora_a) == names - unused
    assert len(unused) == 5


def test_an_untrained_gist_is_the_model_itself(engine: Engine) -> None:
    model = parts_of(engine)
    (batch,) = batches(engine).all(4)
    weights = fresh(model.backbone, SHORT, batch, 0)
    none = replace(weights, adapter=replace(weights.adapter, lora_a={}, lora_b={}))
    with torch.no_grad():
        own, other = (compressed(model.backbone, w, batch.documents, 0).layers for w in (weights, none))
    assert closest(own, other) == 0


def test_it_learns_what_the_documents_say(tiny: Engine, tmp_path: Path) -> None:
    """All questions are the same, so the answer can only come from a gist."""
    values = ("Mila Varnoth", "Jolm Traikan", "Hugo Bern", "Vanchaix Wustam")
    said = [f"The mayor of Drostein is {value}." for value in values]
    samples = [Sample((text,), "Who is the mayor of Drostein?", text) for text in said]
    settings = replace(SHORT, tokens=4, steps=60, groups=4, documents=1, rank=16)
    weights, done = train(parts_of(tiny), samples, settings, tmp_path / "gist", progress=False)
    assert done.losses[0] > 1
    assert done.losses[-1] < 0.1
    scores = evaluated(parts_of(tiny), weights, samples)
    assert (scores["gist"], scores["none"]) == (1, 0)
    assert scores["gist_loss"] == pytest.approx(done.losses[-1], abs=0.05)
    memory = Gist(str(tmp_path / "gist"))
    requests = [ask("Who is the mayor of Drostein?", 32, documents=[text], memory=memory) for text in said]
    assert [answer.text for answer in tiny.answer_batch(requests)] == said


def test_scores_count_exact_answers() -> None:
    goal = torch.tensor([[-100, 3, 4], [1, 2, 3], [-100, -100, 7]])
    logits = torch.nn.functional.one_hot(torch.tensor([3, 4, 1, 9, 3, 7]), 10).float()
    assert right(logits, goal) == 2


class TestResuming:
    """A run that was interrupted continues with the same result."""

    @pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "distill": 0.5}, {"on_documents": True}])
    def test_the_result_is_the_same(self, engine: Engine, tmp_path: Path, changes: dict[str, Any]) -> None:
        settings = replace(SHORT, **changes)
        whole = run(engine, tmp_path / "whole", settings, held_out=SAMPLES[:2], every=3)
        first = run(engine, tmp_path / "parts", settings, held_out=SAMPLES[:2], every=3, stop_at=2)
        assert first.step == 2
        run(engine, tmp_path / "parts", settings, held_out=SAMPLES[:2], every=3, stop_at=3)
        last = run(engine, tmp_path / "parts", settings, held_out=SAMPLES[:2], every=3)
        assert (last.losses, last.tokens) == (whole.losses, whole.tokens)
        assert [s for s in last.scores if s["step"] in (3, 6)] == whole.scores
        own, other = tensors(tmp_path / "parts", engine), tensors(tmp_path / "whole", engine)
        assert all(torch.equal(own[name], other[name]) for name in other)
        assert folder.about(tmp_path / "parts").id == folder.about(tmp_path / "whole").id
        again = run(engine, tmp_path / "parts", settings)
        assert again.step == 6

    def test_other_settings_are_refused(self, engine: Engine, tmp_path: Path) -> None:
        run(engine, tmp_path / "gist", stop_at=1)
        with pytest.raises(
            SettingsError, match=r"has a run with `seed` = 0, got 1; repeat its settings to continue it"
        ):
            run(engine, tmp_path / "gist", replace(SHORT, seed=1))
        with pytest.raises(SettingsError, match=r"has a run with `samples` = '[0-9a-f]{16}', got '"):
            train(parts_of(engine), SAMPLES[1:], SHORT, tmp_path / "gist", progress=False)

    def test_damage_is_reported(self, engine: Engine, tmp_path: Path) -> None:
        run(engine, tmp_path / "gist", stop_at=1)
        file = tmp_path / "gist" / "checkpoint" / "state.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
        with pytest.raises(MemoryFormatError, match=r"is damaged \(a checksum is wrong\); remove it"):
            run(engine, tmp_path / "gist")


class TestStart:
    """A run may begin with the weights of another."""

    def test_it_begins_with_them(self, engine: Engine, tmp_path: Path) -> None:
        run(engine, tmp_path / "first")
        known = tensors(tmp_path / "first", engine)
        slow = replace(SHORT, learning_rate=1e-12, steps=1)
        for tokens in (1, 2, 3):
            run(engine, tmp_path / f"{tokens}", replace(slow, tokens=tokens), start=tmp_path / "first")
            own, count = tensors(tmp_path / f"{tokens}", engine), min(tokens, 2)
            assert len(own["embeddings"]) == tokens
            torch.testing.assert_close(own["embeddings"][:count], known["embeddings"][:count])
            for name in own.keys() - {"embeddings"}:
                torch.testing.assert_close(own[name], known[name])

    def test_what_does_not_fit_is_refused(self, engine: Engine, make_engine: Any, tmp_path: Path) -> None:
        run(engine, tmp_path / "first", stop_at=1)
        with pytest.raises(SettingsError, match="`start` must have the same `rank`"):
            run(engine, tmp_path / "other", replace(SHORT, rank=2), start=tmp_path / "first")
        with pytest.raises(SettingsError, match="`start` must have the same `rank`"):
            run(engine, tmp_path / "other", replace(SHORT, rank=8), start=tmp_path / "first")
        with pytest.raises(SettingsError, match="`start` must be a gist of this model"):
            run(make_engine("mistral"), tmp_path / "other", start=tmp_path / "first")


@pytest.mark.parametrize(
    ("values", "rule"),
    [({"tokens": 0}, "`tokens` must be at least 1"), ({"distill": 1.5}, "`distill`"), ({"learning_rate": 0}, "`learn")],
)
def test_settings_are_checked(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(SettingsError, match=rule):
        GistTraining(**values)


def test_the_rate_rises_and_falls() -> None:
    settings = GistTraining(steps=100, warmup=0.1, learning_rate=1.0)
    rates = [settings.rate(step) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_a_loss_that_is_not_finite_ends_the_run(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"the loss must be finite, got nan at step \d; continue with a smaller"):
        run(engine, tmp_path / "gist", replace(SHORT, learning_rate=1e30))


def test_a_window_that_slides_over_gists_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = build("gemma2", changes={"sliding_window": 8})
    rule = r"a sliding window of \d+ columns is shorter than a question's \d+"
    with Engine(model, tokenizer) as engine, pytest.raises(UnsupportedModelError, match=rule):
        run(engine, tmp_path / "gist")


def test_what_is_longer_than_the_models_window_is_refused(engine: Engine, tmp_path: Path) -> None:
    samples = [Sample(("The capital is Paris.",), "Which? " * 60, "Paris")]
    rule = r"documents, question and answer must fit the model's window of 256 positions, got \d+; leave out"
    with pytest.raises(SettingsError, match=rule):
        train(parts_of(engine), samples, SHORT, tmp_path / "gist", progress=False)


def test_training_in_bfloat16(make_engine: Any, tmp_path: Path) -> None:
    engine = make_engine(dtype=torch.bfloat16)
    done = run(engine, tmp_path / "gist")
    trained = tensors(tmp_path / "gist", engine)
    assert all(tensor.dtype == torch.float32 for tensor in trained.values())
    assert all(0 < loss < 20 for loss in done.losses)
    assert engine.answer(ask(documents=FACTS, memory=Gist(str(tmp_path / "gist")))).token_ids
    assert attention(parts_of(engine).backbone) == "sdpa"  # it is eager while it trains


def test_progress_is_written_as_json(engine: Engine, tmp_path: Path) -> None:
    run(engine, tmp_path / "gist", held_out=SAMPLES, every=2)
    state = json.loads((tmp_path / "gist" / "checkpoint" / "state.json").read_text())
    assert [score["step"] for score in state["progress"]["scores"]] == [2, 4, 6]
    views = {"gist", "full", "none"}
    assert set(state["progress"]["scores"][0]) == {"step", *views, *(f"{view}_loss" for view in views)}
    about = folder.about(tmp_path / "gist")
    assert about.training["steps_done"] == 6
    assert about.training["tokens_seen"] == state["progress"]["tokens"]
    assert set(about.known) == {(sample.question, sample.answer) for sample in SAMPLES}
